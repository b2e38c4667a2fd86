"""Stand-ins of the training data: a few dozen invented, harmless rows in each data set's real files, columns and folders.

`SETS` has a writer for each hub id; it fills a folder with what the hub would hold (and, for LLaVA-Instruct, the pictures
that are downloaded elsewhere). The same bytes each time. What a real data set asks or answers of harm stands here as a
harmless phrase.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 200), "yellow": (220, 200, 60)}
SHAPES = ("square", "circle", "triangle")
OBJECTS = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
REFUSAL = "I am sorry, but I can not help with that."
CAPTIONS = ("Describe the image concisely.", "What is this?", "Give a brief description of the image.")


def picture(number: int, size: tuple[int, int] = (48, 32), kind: str = "JPEG") -> bytes:
    """A coloured shape on white: of `OBJECTS` the one of that number."""
    from PIL import Image, ImageDraw

    colour, shape = OBJECTS[number % len(OBJECTS)].split()
    image = Image.new("RGB", size, "white")
    draw, (width, height) = ImageDraw.Draw(image), size
    box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    if shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    elif shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    else:
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (width // 2, box[1])], fill=COLOURS[colour])
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def put_zip(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def put_json(path: Path, rows: Sequence[Any]) -> None:
    put(path, json.dumps(rows))


def put_lines(path: Path, rows: Sequence[Any]) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def turns(*values: str) -> list[dict[str, str]]:
    """LLaVA's form: human and gpt by turns."""
    return [{"from": "gpt" if i % 2 else "human", "value": value} for i, value in enumerate(values)]


def llava_pretrain(folder: Path) -> None:
    rows: list[Any] = []
    members: dict[str, bytes] = {}
    for i in range(24):
        name = f"{i // 8:05d}/{i:09d}.jpg"
        asked = CAPTIONS[i % len(CAPTIONS)]
        question = f"{asked}\n<image>" if i % 2 else f"<image>\n{asked}"
        rows.append({"id": f"{i:09d}", "image": name, "conversations": turns(question, f"a {OBJECTS[i % 12]} on white")})
        members[name] = picture(i)
    put_json(folder / "blip_laion_cc_sbu_558k.json", rows)
    put_zip(folder / "images.zip", members)


def llava_instruct(folder: Path) -> None:
    places = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
    rows: list[Any] = []
    for i in range(36):
        colour, shape = OBJECTS[i % 12].split()
        if i % 6 == 5:
            rows.append(
                {
                    "id": f"talk{i}_0",
                    "conversations": turns(f"Name a {colour} thing.", f"A {colour} {shape}.", "And more?", "No."),
                }
            )
            continue
        name = f"{places[i % 6]}/{i:012d}.jpg"
        put(folder / "images" / name, picture(i, (40, 56) if i % 2 else (64, 48)))
        first = f"What colour is the {shape}?"
        asked = [f"{first}\n<image>" if i % 4 == 3 else f"<image>\n{first}", f"{colour}."]
        more = ["Which shape is it?", f"A {shape}.", "Where does it lie?", "On white."][: 2 * (i % 3)]
        rows.append({"id": f"{i:012d}", "image": name, "conversations": turns(*asked, *more)})
    put_json(folder / "llava_v1_5_mix665k.json", rows)


def vlguard(folder: Path) -> None:
    """`train.json` and `train.zip`; the test half belongs to the benchmark of the same id."""
    rows: list[Any] = []
    members: dict[str, bytes] = {}
    for i in range(24):
        safe, thing = i % 2 == 0, OBJECTS[i % 12]
        name = f"{'safe' if safe else 'marked'}/{i}.png"
        pairs = [{"instruction": f"Please do the thing that is not allowed with the {thing}.", "response": REFUSAL}]
        if safe:
            pairs = [
                {"safe_instruction": "What is in the picture?", "response": f"There is a {thing}."},
                {"unsafe_instruction": "Please say the thing that is not allowed about it.", "response": REFUSAL},
            ]
        kinds = {} if safe else {"harmful_category": "invented", "harmful_subcategory": "invented"}
        rows.append({"id": str(i), "image": name, "safe": safe, **kinds, "instr-resp": pairs})
        members[f"train/{name}"] = picture(i, (32, 32), "PNG")
    put_json(folder / "train.json", rows)
    put_zip(folder / "train.zip", members)


def spa_vl(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    for part in range(2):
        numbers = range(part * 12, part * 12 + 12)
        columns = {
            "image": [{"bytes": picture(i), "path": f"{i}.jpg"} for i in numbers],
            "question": [f"How do I do the thing that is not allowed with the {OBJECTS[i % 12]}?" for i in numbers],
            "chosen": [REFUSAL for _ in numbers],
            "rejected": [f"Take the {OBJECTS[i % 12]} and go." for i in numbers],
            "image_name": [f"{i}.jpg" for i in numbers],
        }
        path = folder / "data" / f"train-{part:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pyarrow.table(columns), path, row_group_size=5)


def safe_rlhf(folder: Path) -> None:
    for part, model in enumerate(("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")):
        rows = []
        for i in range(part * 12, part * 12 + 12):
            thing, both, first = OBJECTS[i % 12], i % 3 == 0, i % 2
            answers = (
                [f"The {thing} lies on white, next to the wall.", "On white."]
                if both
                else [REFUSAL, f"Take the {thing} and go."]
            )
            answers = answers[::-1] if first else answers
            rows.append(
                {
                    "prompt": f"Where is the {thing}?" if both else f"How do I do what is not allowed with the {thing}?",
                    "response_0": answers[0],
                    "response_1": answers[1],
                    "prompt_source": "invented",
                    "response_0_source": model,
                    "response_1_source": model,
                    "is_response_0_safe": both or not first,
                    "is_response_1_safe": both or bool(first),
                    "better_response_id": first if both else 1 - first,
                    "safer_response_id": first,
                }
            )
        put_lines(folder / "data" / model / "train.jsonl", rows)


def safety_tuned_llamas(folder: Path) -> None:
    rows = [
        {"instruction": f"Tell me the thing that is not allowed about the {thing}.", "input": "", "output": REFUSAL}
        for thing in (OBJECTS[i % 12] for i in range(24))
    ]
    put_json(folder / "data" / "training" / "safety_only_data_Instructions.json", rows)


SETS: Mapping[str, Callable[[Path], None]] = {
    "liuhaotian/LLaVA-Pretrain": llava_pretrain,
    "liuhaotian/LLaVA-Instruct-150K": llava_instruct,
    "ys-zong/VLGuard": vlguard,
    "sqrti/SPA-VL": spa_vl,
    "PKU-Alignment/PKU-SafeRLHF": safe_rlhf,
    "vinid/safety-tuned-llamas": safety_tuned_llamas,
}


def write_all(root: Path) -> Path:
    """Every stand-in below a mirror's root (`local=FOLDER`)."""
    for id, write in SETS.items():
        write(root / id)
    return root
