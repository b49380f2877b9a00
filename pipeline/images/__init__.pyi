from .decoding import DRAFT_SIDE as DRAFT_SIDE
from .decoding import MAX_PIXELS as MAX_PIXELS
from .decoding import decode as decode
from .decoding import decoded_pixels as decoded_pixels
from .decoding import perceptual_hash as perceptual_hash
from .decoding import thumbnail as thumbnail
from .decoding import upright_size as upright_size
from .resizing import resize as resize
