from .purging import PurgeRequest as PurgeRequest
from .purging import purge as purge
from .versions import collect as collect
from .versions import list_versions as list_versions
