from .expressions import check_filter as check_filter
from .expressions import parse_filter as parse_filter
from .rows import MetadataFilter as MetadataFilter
from .rows import conjunction as conjunction
from .rows import filter_mask as filter_mask
