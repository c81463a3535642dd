"""By this file hora knows its own package `horovod` from Horovod's."""
