from .query import QueryRequest as QueryRequest
from .query import run_query as run_query
from .search import Results as Results
from .search import Searcher as Searcher
from .search import open_database as open_database
from .search import open_search as open_search
