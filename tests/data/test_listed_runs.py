"""Runs on tables, Hugging Face folders and tars: the same order, and resumed bit for bit."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from paths import TINY
from PIL import Image
from run_checks import assert_same_end, checkpoint_steps

from mbv3_jax.cli.main import main
from mbv3_jax.data.loader import eval_batches, train_batches
from mbv3_jax.data.source import open_pair

COUNTS = {"train": 24, "val": 8}
KINDS = ("csv", "parquet", "saved", "hub", "tars")


def jpeg(number: int) -> bytes:
    """A dark or a light picture, by whether its number is even."""
    pixels = np.random.default_rng(number).normal(70 + 100 * (number % 2), 20, (40, 44, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{kind: the name of a source}; all have the same images in the same order."""
    root = tmp_path_factory.mktemp("data")
    rows = [(split, i) for split, count in COUNTS.items() for i in range(count)]
    images = [jpeg(number) for number in range(len(rows))]
    lines = ["path,label,split"]
    for number, ((split, i), image) in enumerate(zip(rows, images, strict=True)):
        (root / f"{number}.jpg").write_bytes(image)
        lines.append(f"{number}.jpg,{('dark', 'light')[i % 2]},{split}")
    (root / "t.csv").write_text("\n".join(lines))
    labels = [("dark", "light")[i % 2] for _, i in rows]
    columns = {"image": images, "label": labels, "split": [split for split, _ in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "t.parquet", row_group_size=5)
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["dark", "light"], "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for folder in ("hub", "tars", "saved/train", "saved/val"):
        (root / folder).mkdir(parents=True)
    (root / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "val"]}')
    for split in COUNTS:
        part = [(i, image) for (s, i), image in zip(rows, images, strict=True) if s == split]
        columns = {
            "image": [{"bytes": image, "path": None} for _, image in part],
            "label": [i % 2 for i, _ in part],
        }
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, root / "hub" / f"{split}.parquet", row_group_size=5)
        with pyarrow.ipc.new_stream(str(root / "saved" / split / "0.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=7)
        state = {"_data_files": [{"filename": "0.arrow"}]}
        (root / "saved" / split / "state.json").write_text(json.dumps(state))
        with tarfile.open(root / "tars" / f"{split}-0.tar", "w") as tar:
            for i, image in part:
                label = ("dark", "light")[i % 2].encode()
                for name, content in ((f"{i:03d}.jpg", image), (f"{i:03d}.cls", label)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return {
        "csv": f"table:{root}/t.csv",
        "parquet": f"table:{root}/t.parquet",
        "saved": f"huggingface:{root}/saved",
        "hub": f"huggingface:{root}/hub",
        "tars": f"webdataset:{root}/tars/{{train-0,val-0}}.tar",
    }


def read(source, steps, **options):
    batches = train_batches(source, batch_size=5, seed=3, stop_step=steps, **options)
    try:
        return list(batches)
    finally:
        batches.close()


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


@pytest.mark.parametrize("kind", KINDS)
def test_order_resume_and_evaluation(data, kind):
    train, held_out = open_pair(data[kind], resolution=16)
    expected = read(open_pair(data["csv"], resolution=16)[0], 12)
    whole = read(train, 12)  # two and a half epochs
    same(whole, expected)  # whatever the images come from
    same(read(train, 12, start_step=7), whole[7:])
    in_worker = pickle.loads(pickle.dumps(train))  # as a worker process gets it
    same(read(in_worker, 12, start_step=7), whole[7:])
    same(read(train, 12, num_threads=3), whole)
    seen = np.concatenate([batch["label"] for batch in read(train, 24)])
    np.testing.assert_array_equal(np.bincount(seen), [60, 60])  # 5 epochs of 24, half of each
    batches = eval_batches(held_out, batch_size=5)
    masks = np.concatenate([batch["mask"] for batch in batches])
    batches.close()
    assert masks.sum() == 8


@pytest.mark.slow
def test_train_resume_and_predict_by_the_command_line(data, tmp_path, capsys):
    def train(folder, *more):
        return main(
            [
                "train",
                f"--config={TINY}",
                f"--workdir={tmp_path / folder}",
                f"--config.data.name={data['csv']}",
                *("--config.data.num_examples=None", "--config.net.num_classes=None"),
                *("--config.total_steps=4", "--config.checkpoint_every_steps=2"),
                *("--config.schedule.warmup_steps=0", "--config.eval_every_steps=4"),
                *("--config.data.num_workers=0", *more),
            ]
        )

    assert train("whole") == 0
    assert train("run") == 0
    run = tmp_path / "run"
    for left in (run / "summary.json", *(run / "checkpoints").glob("4")):
        left.rename(tmp_path / left.name)  # as if it had ended after step 2
    assert max(checkpoint_steps(run)) == 2
    assert train("run", "--config.data.num_threads=2") == 0
    assert_same_end(run, tmp_path / "whole")
    summaries = [json.loads((tmp_path / f / "summary.json").read_text()) for f in ("run", "whole")]
    assert summaries[0]["eval"] == summaries[1]["eval"]
    assert summaries[0]["eval"]["count"] == 8
    assert json.loads((run / "classes.json").read_text()) == ["dark", "light"]

    (tmp_path / "one.jpg").write_bytes(jpeg(0))
    capsys.readouterr()
    assert main(["predict", f"--run={run}", str(tmp_path / "one.jpg"), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert {p["class"] for p in json.loads(line)["predictions"]} == {"dark", "light"}
    assert main(["eval", f"--run={run}", f"--data={data['csv']}"]) == 0
    evaluation = json.loads(capsys.readouterr().out)
    assert (evaluation["count"], evaluation["labels"]) == (8, "by name")
