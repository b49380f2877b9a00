from .exporting import export_embeddings as export_embeddings
from .importing import import_embeddings as import_embeddings
from .npz import left_out as left_out
from .picture_sets import PICTURE_FORMS as PICTURE_FORMS
from .picture_sets import export_pictures as export_pictures
