"""timm's speed on a GPU, compiled, a line of JSON for each batch and part; see gpu_speed.py."""

import json
import sys
import time

try:
    import timm
    import torch
except ImportError as missing:
    sys.exit(f"{missing}; --torch names a Python with torch and timm")


def main():
    size, _, batches = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    side, name = (32, "nest_tiny") if size == "small" else (224, size)
    small = {"img_size": 32, "embed_dims": (12, 24, 48), "depths": (1, 1, 1)} if side == 32 else {}
    model = timm.create_model(name, drop_path_rate=0.2, **small)
    model = model.to(device, memory_format=torch.channels_last)
    compiled = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def amp():
        return torch.autocast(device, torch.bfloat16)

    for batch in map(int, batches.split(",")):
        images = torch.randn(batch, 3, side, side, device=device)
        images = images.to(memory_format=torch.channels_last)
        labels = torch.randint(0, 1000, (batch,), device=device)

        def forward(images=images):
            model.eval()
            with torch.inference_mode(), amp():
                compiled(images)

        def train(images=images, labels=labels):
            model.train()
            optimizer.zero_grad(set_to_none=True)
            with amp():
                loss = torch.nn.functional.cross_entropy(compiled(images), labels)
            loss.backward()
            optimizer.step()

        for part, run in (("forward", forward), ("train step", train)):
            seconds = timed(run, device)
            row = {"part": part, "batch": batch, "speed": batch / seconds}
            used = torch.cuda.max_memory_allocated() if device == "cuda" else None
            print(json.dumps({**row, "bytes": used}), flush=True)


def timed(run, device):
    """Seconds of one call, after those that compile."""

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        run()
    wait()
    began, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - began < 1.5:
        run()
        calls += 1
        if calls % 8 == 0:
            wait()
    wait()
    return (time.perf_counter() - began) / calls


main()
