#!/usr/bin/env python3
"""Writes scores.json: answers, references and the scores that src/eval/scorers.cc has to give."""
import json
import pathlib
import random
import re
import string


def normalised(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(answer, reference):
    said, expected = normalised(answer), normalised(reference)
    left, same = list(expected), 0
    for word in said:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(said), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def option(text):
    found = re.search(r"\(([A-H])\)", text)
    found = found or re.search(r"(?:^|(?<=[ \t\n\v\f\r]))([A-H])(?=$|[.):\n])", text)
    return found.group(1) if found else None


def leading(answer, reference):
    said, expected = answer.split(), reference.split()
    count = 0
    while count < min(len(said), len(expected)) and said[count] == expected[count]:
        count += 1
    return count / len(expected) if expected else 0.0


def case(answer, references):
    contained = [r.lower() in answer.lower() for r in references]
    named = [option(r) is not None and option(r) == option(answer) for r in references]
    return {
        "answer": answer,
        "references": references,
        "contained": sum(contained) / len(contained) if contained else 0.0,
        "any": float(any(contained)),
        "f1": max([f1(answer, r) for r in references], default=0.0),
        "leading": max([leading(answer, r) for r in references], default=0.0),
        "option": float(any(named)),
    }


HAND_MADE = [
    ("", []), ("x", []), ("", ["x"]), ("The", ["the"]), ("a b c", ["A, B; C."]),
    ("It's the Queen's house", ["queens house"]), ("1,000 men", ["1000 men"]),
    ("don't", ["dont", "do not"]), ("new-york city", ["New York City", "newyork city"]),
    ("(C) because", ["(C) the answer", "(D)"]), ("Answer: B", ["(B) x"]), ("A dog", ["(A)"]),
    ("\n\n Paris \n", ["paris"]), ("café au lait", ["café"]), ("E.", ["(E) y"]),
]


def main():
    rng = random.Random(7)
    words = ["a", "an", "the", "The", "red", "Red,", "blue", "(A)", "(B)", "B", "C.", "48213",
             "48213.", "seven", "it's", "is", "\n", "--", "New", "York"]
    cases = [case(*item) for item in HAND_MADE]
    for _ in range(400):
        draw = lambda most: " ".join(rng.choice(words) for _ in range(rng.randint(0, most)))
        references = [draw(4) for _ in range(rng.randint(1, 3))]
        answer = draw(8) if rng.random() < 0.6 else references[0] + " " + draw(4)
        cases.append(case(answer, references))
    path = pathlib.Path(__file__).with_name("scores.json")
    text = ",\n".join(json.dumps(item, ensure_ascii=False) for item in cases)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
