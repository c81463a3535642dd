"""hora under Horovod's name. This module puts hora in its own place, see hora.horovod_alias."""

from hora import horovod_alias

horovod_alias.install()
