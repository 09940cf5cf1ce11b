#!/usr/bin/env python3
"""Makes tests/golden/tokenizers: small tokenizers of every kind that is read, with reference ids.

Needs the packages tokenizers (made with 0.23.3) and sentencepiece (0.2.3). Every tokenizer is
trained on the beginning of assets/sample.txt. <name>.json is a tokenizer.json, <name>.model a
sentencepiece model; golden.json has the ids that the packages give for TEXTS, and what they decode
those to.
"""
import io
import json
import pathlib

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

ROOT = pathlib.Path(__file__).parent.parent.parent
OUT = pathlib.Path(__file__).parent / "tokenizers"
NUM_CHARACTERS = 30_000
MARK = "\u2581"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
          r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n \n", "Hello world", " Hello  world ", "Ahoy, who'd row? They're we've 'em!",
    "I'LL go, he'd\u017Fay, WE'VE", "1", "12", "123", "1234", "12345678", "a1b22 c333", " 3 33  333\n3333",
    "3\u00B2 4\u00BD \u2167 \u0663\u0664", "the lighthouse keeper's \"log\" (1847) -- $5.50 = #7~`x`",
    "na\u00EFve cafe\u0301 \u212B A\u030A \u1112\u1161\u11AB", "\u6F22\u5B57\u304B\u306A \u0E44\u0E17\u0E22",
    "\U0001F600 \U0001F468\u200D\U0001F469\u200D\U0001F467", "x\u00A0y\u3000z\u2003w\u0085v\u180Eu",
    "<s>Hello</s> world<|tool|> x", "a <|tool|> b<s> c", "CamelCaseWORDS and XMLHttpRequest/path//to",
    "\u2581under\u2581score \u2581", "\u2581", "\u0000\u0001\u007F", "tabs\tand\n\n\nlines  \n  end  ",
    "\u00C3\u00B2\u00B3\u00B9 \u01B2 \u0372", "\u0130stanbul \u01C5 \u02B0", "...!!??\n--\n",
]


def corpus():
    return (ROOT / "assets/sample.txt").read_text(encoding="utf-8")[:NUM_CHARACTERS]


def added(normalized):
    return [AddedToken("<s>", special=True, normalized=normalized),
            AddedToken("</s>", special=True, normalized=normalized),
            AddedToken("<|tool|>", special=False, normalized=normalized)]


def save(tokenizer, name, golden, tokens):
    for token in tokens:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    tokenizer.save(str(OUT / f"{name}.json"), pretty=False)
    tokenizer = Tokenizer.from_file(str(OUT / f"{name}.json"))
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    golden[name] = {"ids": ids, "decoded": [tokenizer.decode(i, skip_special_tokens=False) for i in ids]}


def byte_level(name, golden, parts, tokens=None, normalizer=None):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([corpus()], BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    save(tokenizer, name, golden, tokens or added(False))


def metaspace(name, golden, normalizer, pre_tokenizer, decoder, tokens):
    model = BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    # Trained on words so that merges don't cross them, as sentencepiece does.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always")
    tokenizer.normalizer = None
    specials = ["<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator([corpus()], BpeTrainer(
        vocab_size=600, special_tokens=specials, show_progress=False))
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] == "<unk>"]
    data["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
        data = json.loads(tokenizer.to_str())
        data["pre_tokenizer"] = None
        tokenizer = Tokenizer.from_str(json.dumps(data))
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    save(tokenizer, name, golden, tokens)


def sequence_decoder(*strip):
    return decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(),
                              *strip])


def split(regex, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(regex), behavior, invert)


def make_tokenizer_json(golden):
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    no_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level("gpt2", golden, [plain], tokens=[
        AddedToken("<s>", special=True, normalized=False, lstrip=True),
        AddedToken("</s>", special=True, normalized=False, rstrip=True),
        AddedToken("<|tool|>", special=False, normalized=True, lstrip=True, rstrip=True)])
    byte_level("llama3", golden, [split(LLAMA3), no_regex])
    byte_level("cl100k", golden, [split(CL100K, "removed", True), no_regex])
    byte_level("qwen2", golden, [split(QWEN2), no_regex], normalizer=normalizers.NFC())
    byte_level("tekken", golden, [split(TEKKEN), no_regex])
    byte_level("smollm", golden, [pre_tokenizers.Digits(individual_digits=True), plain])
    byte_level("falcon", golden, [
        pre_tokenizers.Punctuation("contiguous"), plain,
        pre_tokenizers.Digits(individual_digits=False), split("[0-9][0-9][0-9]")])

    strip = decoders.Strip(" ", 1, 0)
    prepend = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    metaspace("prepend", golden, prepend, None, sequence_decoder(strip), added(False))
    metaspace("prepend_normalized", golden, prepend, None, sequence_decoder(strip), added(True))
    metaspace("replace", golden, normalizers.Replace(" ", MARK),
              pre_tokenizers.Split(" ", "merged_with_previous"), sequence_decoder(), added(False))
    for scheme in ["always", "first", "never"]:
        for is_split in [True, False]:
            decoder = sequence_decoder(*([strip] if scheme != "never" else []))
            metaspace(f"metaspace_{scheme}{'_split' if is_split else ''}", golden, None,
                      pre_tokenizers.Metaspace(MARK, scheme, is_split), decoder, added(False))


def make_sentencepiece(golden):
    lines = [line for line in corpus().split("\n") if line]
    common = dict(vocab_size=600, byte_fallback=True, normalization_rule_name="identity",
                  character_coverage=0.999, minloglevel=2, hard_vocab_limit=False, num_threads=1,
                  self_test_sample_size=0)
    kinds = {
        "bpe": dict(model_type="bpe", remove_extra_whitespaces=False),
        "bpe_no_prefix": dict(model_type="bpe", remove_extra_whitespaces=False,
                              add_dummy_prefix=False, allow_whitespace_only_pieces=True),
        "bpe_trimmed": dict(model_type="bpe", remove_extra_whitespaces=True),
        "unigram": dict(model_type="unigram", remove_extra_whitespaces=False),
    }
    for name, options in kinds.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model,
                                                 **common, **options)
        (OUT / f"{name}.model").write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        texts = [text for text in TEXTS if "<s>" not in text and "</s>" not in text]
        ids = [processor.encode(text) for text in texts]
        golden[name] = {"texts": texts, "ids": ids}


def main():
    OUT.mkdir(exist_ok=True)
    golden = {"texts": TEXTS}
    make_tokenizer_json(golden)
    make_sentencepiece(golden)
    (OUT / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
