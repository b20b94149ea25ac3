import sksm.hooks
from app import app as application
from uwsgidecorators import postfork


@postfork
def merge():
    sksm.hooks.merge_after(20, log=print)
