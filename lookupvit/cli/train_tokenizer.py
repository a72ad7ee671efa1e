"""`lookupvit train-tokenizer`: a SentencePiece model of the training captions."""

from pathlib import Path

from datamodules.captions.index import LAYOUTS, annotation_file, find_layout, read_captions
from datamodules.captions.tokenizer import MODEL_TYPES, train_tokenizer
from lookupvit.cli.common.arguments import OneLineParser
from lookupvit.writing import whole


def train_tokenizer_command(argv: list[str]) -> None:
    """Trains a tokenizer and writes it; of a data set only the annotations are read, not the images.

    Raises:
        ValueError: For arguments or captions that do not fit, in one line.
        FileNotFoundError: If the captions are missing.
    """
    parser = OneLineParser(
        prog="lookupvit train-tokenizer",
        description="Train a SentencePiece model on the training captions of a data set, or on files of captions.",
    )
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="folder of a captioned data set")
    parser.add_argument(
        "--data.annotations",
        dest="annotations",
        default="auto",
        metavar="NAME",
        help=f"layout of the data set ({', '.join(LAYOUTS)}) or a .json file",
    )
    parser.add_argument(
        "--captions",
        nargs="+",
        default=[],
        metavar="FILE",
        help="COCO or Karpathy JSON, or text with a caption per line",
    )
    parser.add_argument("--vocab_size", type=int, default=32000, help="tokens at most (32000)")
    parser.add_argument("--model_type", choices=MODEL_TYPES, default="unigram", help="kind of model (unigram)")
    parser.add_argument("--output", default="tokenizer.model", metavar="FILE", help="the .model file to write")
    args = parser.parse_args(argv)
    if (args.root is None) == (not args.captions):
        raise ValueError("train-tokenizer needs --data.root DIR or --captions FILES, one of them")
    if args.root is None:
        files = [Path(name).expanduser() for name in args.captions]
    else:
        root = Path(args.root).expanduser()
        files = [annotation_file(root, find_layout(root, args.annotations), "train")]
    captions = [caption for file in files for caption in read_captions(file)]
    tokenizer = train_tokenizer(captions, args.vocab_size, args.model_type)
    with whole(args.output) as partial:
        tokenizer.save(partial)
    if tokenizer.vocab_size < args.vocab_size:
        print(f"{len(captions)} captions are too few for {args.vocab_size} tokens: it has {tokenizer.vocab_size}")
    lengths = [len(tokenizer.encode(caption)) for caption in captions]
    print(
        f"wrote {args.output}: {tokenizer.vocab_size} tokens ({args.model_type}) out of {len(captions)} captions, of "
        f"{sum(lengths) / len(lengths):.1f} tokens on average and {max(lengths)} at most"
    )
