from .copying import copy_failed as copy_failed
from .copying import write_csv as write_csv
from .purging import PurgeRequest as PurgeRequest
from .purging import purge as purge
from .versions import collect as collect
from .versions import list_versions as list_versions
