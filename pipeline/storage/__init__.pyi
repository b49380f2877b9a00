from .files import Artifact as Artifact
from .files import Storage as Storage
from .files import disk_full_is_an_error as disk_full_is_an_error
from .files import sha256_file as sha256_file
from .leases import holder_of as holder_of
from .leases import lease as lease
