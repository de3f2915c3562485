"""Text to ids and back: the BERT tokenizer (numpy and the tokenizers library, never torch)."""

from filbert.text.encoding import Encoding
from filbert.text.tokenizer import BertTokenizer, BertTokenizerFast

__all__ = ["BertTokenizer", "BertTokenizerFast", "Encoding"]
