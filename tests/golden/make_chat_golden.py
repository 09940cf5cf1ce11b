#!/usr/bin/env python3
"""Makes tests/golden/chat_templates/golden.json: what the templates beside it print.

Needs transformers (made with 5.23.0), whose way of running Jinja is the reference. The templates are
our own: for the conversations below they print what the models' published ones print.
"""
import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = pathlib.Path(__file__).parent / "chat_templates"
SYSTEM = {"role": "system", "content": " Be brief.\n"}
FIRST = {"role": "user", "content": "  Hi there "}
ANSWER = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n Hello! "}
SECOND = {"role": "user", "content": "Why?\n"}
CONVERSATIONS = [[FIRST], [SYSTEM, FIRST], [FIRST, ANSWER, SECOND], [SYSTEM, FIRST, ANSWER, SECOND]]


def render(template, messages):
    try:
        texts, _ = render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=True,
            bos_token="<s>", eos_token="</s>")
        return texts[0]
    except Exception:  # what the template raises
        return None


def main():
    golden = {"conversations": CONVERSATIONS, "templates": {}}
    for path in sorted(FOLDER.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        golden["templates"][path.stem] = [render(template, c) for c in CONVERSATIONS]
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
