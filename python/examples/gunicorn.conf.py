import sksm.hooks


def post_worker_init(worker):
    sksm.hooks.merge_after(20, every=600, log=worker.log.info)
