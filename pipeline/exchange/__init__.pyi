from .exporting import export_embeddings as export_embeddings
from .importing import import_embeddings as import_embeddings
from .npz import left_out as left_out
