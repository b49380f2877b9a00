from .query import QueryRequest as QueryRequest
from .query import encode_image_files as encode_image_files
from .query import result_sheet as result_sheet
from .query import run_query as run_query
from .search import Results as Results
from .search import Searcher as Searcher
from .search import open_database as open_database
from .search import open_search as open_search
