"""A plug-in that reads the shop's files: training rows and benchmarks."""

CODE = """
import json
import random
from vlsafe.data.rows import TrainingData
from vlsafe.eval.base import Item
from vlsafe.eval.suites import Suite


def lines(folder, name):
    return [json.loads(line) for line in (Path(folder) / f"{name}.jsonl").read_text("utf-8").splitlines()]


def opened(folder, name):
    from PIL import Image

    with Image.open(Path(folder) / name) as picture:
        return picture.convert("RGB")


@register("data", "shop")
@dataclass(frozen=True)
class Shop(TrainingData):
    folder: str

    def _rows(self, purpose, n, seed):
        found = lines(self.folder, purpose)
        rows = []
        while len(rows) < n:
            again = list(found)
            random.Random(f"{purpose} {seed} {len(rows)}").shuffle(again)
            rows += again
        pictures = {name: opened(self.folder, name) for row in found for name in row["images"]}
        return [{**row, "source": f"shop_{purpose}", "images": [pictures[i] for i in row["images"]]} for row in rows[:n]]

    def supervised(self, purpose, n, seed):
        return self._rows(purpose, n, seed)

    def preferences(self, purpose, n, seed):
        return self._rows(purpose, n, seed)


@dataclass(frozen=True)
class ShopBenchmark(Benchmark):
    folder: str

    def items(self, limit):
        def item(line):
            image = (lambda: opened(self.folder, line["image"])) if "image" in line else None
            return Item(line["id"], "shop", line["prompt"], line["expects"], line.get("target", ""), image)

        return [item(line) for line in lines(self.folder, self.component_name)][:limit]


@register("benchmark", "shop_text")
@dataclass(frozen=True)
class ShopText(ShopBenchmark):
    axis: ClassVar[str] = "helpfulness"
    needs_image: ClassVar[bool] = False


@register("benchmark", "shop_tags")
@dataclass(frozen=True)
class ShopTags(ShopBenchmark):
    axis: ClassVar[str] = "helpfulness"
    needs_image: ClassVar[bool] = True


@register("benchmark", "shop_teapot")
@dataclass(frozen=True)
class ShopTeapot(ShopBenchmark):
    axis: ClassVar[str] = "text_safety"
    needs_image: ClassVar[bool] = False


@register("eval", "shop")
@dataclass(frozen=True)
class ShopSuite(Suite):
    folder: str = ""

    def settings(self):
        return {"folder": self.folder}
"""

CONFIGS = {
    "data/shop.yaml": "name: shop\nfolder: ???\n",
    "eval/shop.yaml": "name: shop\nfolder: ${data.folder}\nlimit: null\nbenchmarks: [shop_text, shop_tags, shop_teapot]\n",
}
