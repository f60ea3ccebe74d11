"""timm's images a second, one round for each line that comes in; see model_speed.py."""

import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from support import without_torchvision

without_torchvision.pretend()
import timm  # noqa: E402
import torch  # noqa: E402

BATCH = 16


def main():
    torch.manual_seed(0)
    model = timm.create_model("nest_tiny", drop_path_rate=0.2)
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.randint(0, 1000, (BATCH,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def train():
        model.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def infer():
        model.eval()
        with torch.inference_mode():
            model(images)

    for _ in sys.stdin:
        speeds = {}
        for name, run, times in (("train step", train, 2), ("forward", infer, 3)):
            start = time.perf_counter()
            for _ in range(times):
                run()
            speeds[name] = times * BATCH / (time.perf_counter() - start)
        print(json.dumps(speeds), flush=True)


main()
