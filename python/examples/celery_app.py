import sksm.hooks
from app import table
from celery import Celery
from celery.signals import worker_process_init

app = Celery("celery_app", broker="memory://")


@worker_process_init.connect
def merge(**_):
    sksm.hooks.merge_after(20)


@app.task
def look(number):
    return table[number]
