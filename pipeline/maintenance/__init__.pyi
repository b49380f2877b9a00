from .checking import CheckReport as CheckReport
from .checking import check_database as check_database
from .checking import repair_database as repair_database
from .purging import PurgeRequest as PurgeRequest
from .purging import purge as purge
from .versions import collect as collect
from .versions import list_versions as list_versions
