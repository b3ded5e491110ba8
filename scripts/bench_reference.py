"""The cases of `snclr bench` in PyTorch, torchvision and faiss: the other side of docs/benchmarks.md.

    python scripts/bench_reference.py queue knn probe
    python scripts/bench_reference.py augment-cifar augment-imagenet --images DIR   # DIR: snclr bench --save-images
    python scripts/bench_reference.py small resnet50 --compile --bf16
    python scripts/bench_reference.py resnet50 --device cuda --precision f16 --batch 256 --compile
    python scripts/bench_reference.py queue --device cuda --precision tf32 --queries 1024

Prints one JSON object like that of `snclr bench --json`, a row per implementation; each case has a process of its own, so that
its peak memory is its own. Needs torch, torchvision, (for queue and knn) faiss-cpu and (for vit_tiny and vit_small) timm.
"""

import argparse
import copy
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# Case: threads and repetitions unless others are asked for, as `snclr bench` has them.
CASES = {
    "small": (None, 10),
    "resnet18": (None, 5),
    "resnet50": (None, 5),
    "vit_tiny": (None, 10),
    "vit_small": (None, 5),
    "queue": (None, 20),
    "augment-cifar": (1, 5),
    "augment-imagenet": (1, 5),
    "knn": (None, 3),
    "probe": (None, 3),
}


def timed(once, steps, device=torch.device("cpu")):
    """Milliseconds of each of `steps` calls, after one that does not count (on a GPU three: algorithms are chosen in the first)."""
    if device.type == "cuda":
        return timed_on_gpu(once, steps)
    once()
    took = []
    for _ in range(steps):
        begun = time.perf_counter()
        once()
        took.append((time.perf_counter() - begun) * 1e3)
    return took


def timed_on_gpu(once, steps):
    """The time between the ends of calls on the device, which is not waited for between them: it may be kept busy."""
    for _ in range(3):
        once()
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    ends[0].record()
    for end in ends[1:]:
        once()
        end.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in zip(ends, ends[1:])]


def with_index(name):
    """The device of a name. `torch.cuda` takes no device without an index: `cuda` is the first GPU."""
    return torch.device("cuda:0" if name == "cuda" else name)


def gpu(device):
    """Name of the GPU, and what is held of its memory: allocators give nothing back, so that it is the peak."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return {"name": torch.cuda.get_device_name(device), "memory_mb": (total - free) / 1e6}


def row(args, case, library, what, took, images=None, precision="f32"):
    median, least = statistics.median(took), min(took)
    rate = images and {"median": images * 1e3 / median, "maximum": images * 1e3 / least}
    return {
        "case": case,
        "what": what,
        "precision": precision,
        "device": str(args.device),
        "threads": torch.get_num_threads(),
        "steps": len(took),
        "milliseconds": {"median": median, "minimum": least},
        "images_per_second": rate,
        "flops": None,
        "waiting_share": None,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "gpu": gpu(args.device),
        "machine": {"cpu": cpu(), "cores": len(os.sched_getaffinity(0)), "vector_unit": torch.backends.cpu.get_cpu_capability()},
        "version": library,
    }


def cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def torch_version():
    return f"torch {torch.__version__.split('+')[0]}"


def unit_rows(n, dim, seed):
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1)


def faiss_or_none():
    try:
        import faiss
    except ImportError:
        print("faiss is missing (pip install faiss-cpu): its rows are left out", file=sys.stderr)
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


# --- queue: exact K largest dot products


def queue(args):
    length, k, dim, count = args.queue_length or 131072, args.k or 30, 256, args.queries or 256
    storage = {"f16": torch.float16, "bf16": torch.bfloat16}.get(args.precision, torch.float32)
    queries, bank = (unit_rows(n, dim, seed).to(args.device, storage) for n, seed in ((count, 0), (length, 1)))
    what = f"the {k} nearest of {length} rows to each of {count} queries, width {dim}"
    columns = bank.T.contiguous()
    layouts = {
        "rows": lambda: queries @ bank.T,
        "columns": lambda: queries @ columns,
        "turned": lambda: (bank @ queries.T).T,
    }
    best = None
    for layout, scores in layouts.items():
        took = timed(lambda: scores().topk(k, dim=1), args.steps, args.device)
        found = row(args, "queue", f"{torch_version()} matmul+topk ({layout})", what, took, precision=args.precision)
        if best is None or found["milliseconds"]["median"] < best["milliseconds"]["median"]:
            best = found
    yield best
    if args.device.type != "cpu" or args.precision != "f32":
        return
    if faiss := faiss_or_none():
        index = faiss.IndexFlatIP(dim)
        index.add(bank.numpy())
        took = timed(lambda: index.search(queries.numpy(), k), args.steps)
        yield row(args, "queue", f"faiss {faiss.__version__} IndexFlatIP", what, took)


# --- kNN and probe on rows around a point per class


def classes():
    centres = torch.randn(10, 512, generator=torch.Generator().manual_seed(1))

    def split(n, seed):
        labels = torch.arange(n) % 10
        noise = torch.randn(n, 512, generator=torch.Generator().manual_seed(seed))
        return noise + 0.2 * centres[labels], labels

    return split(50_000, 2), split(10_000, 3)


def vote(cosines, neighbours, labels):
    """Winners of DINO's protocol: a neighbour votes exp(cosine / 0.07) for its class."""
    votes = torch.zeros(len(cosines), 10).scatter_add_(1, labels[neighbours], (cosines / 0.07).exp())
    return votes.argmax(1)


def knn(args):
    (bank, labels), (queries, _) = classes()
    k = args.k or 200
    what = f"{len(queries)} queries, a bank of {len(bank)}, width 512, K {k}"

    def with_torch():
        columns, found = F.normalize(bank, dim=1).T, []
        for chunk in F.normalize(queries, dim=1).split(1000):
            cosines, neighbours = (chunk @ columns).topk(k, dim=1)
            found.append(vote(cosines, neighbours, labels))
        return torch.cat(found)

    yield row(args, "knn", torch_version(), what, timed(with_torch, args.steps))
    if faiss := faiss_or_none():

        def with_faiss():
            index = faiss.IndexFlatIP(512)
            index.add(F.normalize(bank, dim=1).numpy())
            cosines, neighbours = index.search(F.normalize(queries, dim=1).numpy(), k)
            return vote(torch.from_numpy(cosines), torch.from_numpy(neighbours), labels)

        yield row(args, "knn", f"faiss {faiss.__version__} IndexFlatIP", what, timed(with_faiss, args.steps))


def probe(args):
    (rows, labels), (unseen, unseen_labels) = classes()
    epochs, size, rate = 90, 1024, 0.1 * 1024 / 256
    what = f"50000 rows, scored on 10000, width 512, 10 classes, {epochs} epochs of batches of {size}"

    def train():
        mean, deviation = rows.mean(0), rows.std(0, unbiased=False)
        x, test = (rows - mean) / deviation, (unseen - mean) / deviation
        layer = nn.Linear(512, 10)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
        steps, step = epochs * math.ceil(len(x) / size), 0
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(size):
                optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                loss = F.cross_entropy(layer(x[batch]), labels[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                step += 1
        with torch.no_grad():
            top1 = (layer(test).argmax(1) == unseen_labels).float().mean().item()
        assert top1 > 0.9, top1

    yield row(args, "probe", torch_version(), what, timed(train, args.steps))


# --- augmentation: torchvision on Pillow, from encoded bytes


def augment(args, case):
    import io
    import random

    import torchvision
    from PIL import Image, ImageFilter
    from torchvision import transforms as T

    if args.images is None:
        sys.exit(f"{case}: write its images first: snclr bench --case {case} --save-images DIR, then --images DIR")
    pattern = "*.png" if case == "augment-cifar" else "*.jpg"
    files = [path.read_bytes() for path in sorted(args.images.glob(pattern))]
    if not files:
        sys.exit(f"{case}: no {pattern} in {args.images}; snclr bench --case {case} --save-images {args.images} writes them")

    def blur(image):
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def view(size, saturation, blurred, solarized, mean, std):
        jitter = T.ColorJitter(0.4, 0.4, saturation, 0.1)
        steps = [T.RandomResizedCrop(size, scale=(0.2, 1.0)), T.RandomApply([jitter], p=0.8), T.RandomGrayscale(p=0.2)]
        if blurred > 0:
            steps.append(T.RandomApply([T.Lambda(blur)], p=blurred))
        if solarized > 0:
            steps.append(T.RandomSolarize(threshold=128, p=solarized))
        return T.Compose([*steps, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean, std)])

    if case == "augment-cifar":
        statistics_of = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
        views = [view(32, 0.4, 0.5, 0.0, *statistics_of)] * 2
    else:
        statistics_of = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        views = [view(224, 0.2, 1.0, 0.0, *statistics_of), view(224, 0.2, 0.1, 0.2, *statistics_of)]

    def once():
        for file in files:
            image = Image.open(io.BytesIO(file)).convert("RGB")
            for make in views:
                make(image)

    kilobytes = sum(map(len, files)) / len(files) / 1e3
    what = f"both views of {len(files)} images, {kilobytes:.1f} kB each"
    library = f"torchvision {torchvision.__version__.split('+')[0]}, Pillow {Image.__version__}"
    yield row(args, case, library, what, timed(once, args.steps), images=len(files))


# --- a whole pretraining step


# timm's names, sizes of images and of patches.
VITS = {"vit_tiny": ("vit_tiny_patch16_224", 32, 4), "vit_small": ("vit_small_patch16_224", 224, 16)}
STEPS = ("small", "resnet18", "resnet50", *VITS)


def mlp(layers, width, hidden, out):
    """Linear, batch norm, ReLU; the last layer ends in a batch norm without parameters."""
    parts = []
    for layer in range(layers):
        last = layer == layers - 1
        parts.append(nn.Linear(width if layer == 0 else hidden, out if last else hidden, bias=False))
        parts += [nn.BatchNorm1d(out, affine=False)] if last else [nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts)


def encoder(case):
    if case in VITS:
        import timm

        # Positions are fixed (sine and cosine) as in our encoder: they are added and not trained.
        net = timm.create_model(VITS[case][0], img_size=VITS[case][1], patch_size=VITS[case][2], num_classes=0)
        net.pos_embed.requires_grad_(False)
        return net, net.embed_dim
    from torchvision.models import resnet

    if case == "resnet50":
        net = resnet.resnet50(num_classes=1)
        net.fc = nn.Identity()
        return net, 2048
    width = 16 if case == "small" else 64
    net = resnet.resnet18(num_classes=1)
    net.inplanes = width
    net.conv1, net.bn1, net.maxpool = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.Identity()
    for stage in range(4):
        layer = net._make_layer(resnet.BasicBlock, width << stage, 2, stride=1 if stage == 0 else 2)
        setattr(net, f"layer{stage + 1}", layer)
    net.fc = nn.Identity()
    return net, width * 8


def lars(parameters, velocity, rate):
    """LARS as MoCo-v3 has it: momentum 0.9, weight decay 1e-6, trust 1e-3; vectors are neither decayed nor scaled."""
    for parameter in parameters:
        change = parameter.grad
        if parameter.ndim > 1:
            change = change.add(parameter, alpha=1e-6)
            lengths = parameter.norm(), change.norm()
            change = change * torch.where(lengths[0] * lengths[1] > 0, 1e-3 * lengths[0] / lengths[1], 1.0)
        velocity[parameter] = velocity[parameter].mul_(0.9).add_(change)
        parameter.sub_(velocity[parameter], alpha=rate)


class Lars(torch.optim.Optimizer):
    """The same with one launch for many tensors, as a GPU wants it, and as an optimiser, as loss scaling wants it."""

    def __init__(self, parameters, rate):
        super().__init__(parameters, {})
        everything = self.param_groups[0]["params"]
        self.parts = [[p for p in everything if p.ndim > 1], [p for p in everything if p.ndim <= 1]]
        self.velocity = [[torch.zeros_like(p) for p in part] for part in self.parts]
        self.rate = rate

    @torch.no_grad()
    def step(self):
        for scaled, (part, velocity) in enumerate(zip(self.parts, self.velocity)):
            change = [p.grad for p in part]
            if scaled == 0:
                change = torch._foreach_add(change, part, alpha=1e-6)
                lengths = [torch.stack(torch._foreach_norm(tensors)) for tensors in (part, change)]
                trust = torch.where(lengths[0] * lengths[1] > 0, 1e-3 * lengths[0] / lengths[1], 1.0)
                change = torch._foreach_mul(change, trust.unbind())
            torch._foreach_mul_(velocity, 0.9)
            torch._foreach_add_(velocity, change)
            torch._foreach_sub_(part, velocity, alpha=self.rate)


def step(args, case):
    large = case in ("resnet50", "vit_small")
    n, size, dim, hidden = (8, 224, 256, 4096) if large else (128, 32, 128, 512)
    n, device = args.batch or n, args.device
    length, k, tau = args.queue_length or (65536 if large else 16384), args.k or 30, 0.2
    net, width = encoder(case)
    online = nn.Sequential(net, mlp(3, width, hidden, dim)).to(device, memory_format=torch.channels_last)
    target = copy.deepcopy(online).requires_grad_(False)
    predictor = mlp(2, dim, hidden, dim).to(device)
    attention = nn.ModuleList([nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)]).to(device)
    bank = unit_rows(length, dim, 0).to(device)
    views = [torch.randn(n, 3, size, size).to(device, memory_format=torch.channels_last) for _ in range(2)]
    parameters = [p for module in (online, predictor, attention) for p in module.parameters() if p.requires_grad]
    pairs = list(zip(target.parameters(), online.parameters()))
    velocity = {parameter: torch.zeros_like(parameter) for parameter in parameters}
    half = {"f16": torch.float16, "bf16": torch.bfloat16}.get(args.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "f16")
    at_once = Lars(parameters, 0.05) if device.type == "cuda" or scaler.is_enabled() else None
    numbers = torch.arange(n, device=device)
    oldest = 0
    if args.compile:
        online.forward, target.forward = torch.compile(online.forward), torch.compile(target.forward)

    def direction(z, y, key):
        """The paper's loss: K soft positives of the key, weighted by attention; all candidates of the batch below the line."""
        neighbours = bank[(F.normalize(key, dim=1) @ bank.T).topk(k, dim=1).indices]
        candidates = F.normalize(torch.cat([key[:, None], neighbours], 1), dim=2)
        scores = torch.einsum("nd,mkd->nmk", F.normalize(z, dim=1), candidates) / tau
        asked = attention[0](F.normalize(y, dim=1))
        weight = torch.log_softmax(torch.einsum("nd,nkd->nk", asked, attention[1](candidates[:, 1:])), 1)
        own = scores[numbers, numbers] + F.pad(weight, (1, 0))
        return (scores.flatten(1).logsumexp(1) - own.logsumexp(1)).mean()

    def once():
        nonlocal oldest
        with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            y = [online(view) for view in views]
            z = [predictor(y) for y in y]
            with torch.no_grad():
                if at_once is None:
                    for slow, fast in pairs:
                        slow.lerp_(fast, 0.01)
                else:
                    torch._foreach_lerp_(*map(list, zip(*pairs)), 0.01)
                keys = [target(view).float() for view in views]
        loss = direction(z[0].float(), y[0].float(), keys[1]) + direction(z[1].float(), y[1].float(), keys[0])
        for parameter in parameters:
            parameter.grad = None
        scaler.scale(loss).backward()
        if at_once is not None:
            scaler.step(at_once)
            scaler.update()
        with torch.no_grad():
            if at_once is None:
                lars(parameters, velocity, 0.05)
            bank[(oldest + numbers) % length] = F.normalize(keys[1], dim=1)
            oldest += n

    names = {"small": "ResNet-18 of width 16", "resnet18": "ResNet-18", "resnet50": "ResNet-50"}
    names |= {"vit_tiny": "ViT-Tiny, patches of 4", "vit_small": "ViT-S/16"}
    what = f"step: {names[case]}, {size}x{size}, batch {n}, queue {length}, K {k}"
    library = f"{torch_version()}{' compiled' if args.compile else ''}, channels last"
    took = timed(once, args.steps, device)
    yield row(args, case, library, what, took, images=n, precision=args.precision)


def measure(args, case):
    threads, steps = CASES[case]
    torch.set_num_threads(args.threads or threads or len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)
        torch.backends.cudnn.benchmark = True
    for library in (torch.backends.cuda.matmul, torch.backends.cudnn):
        library.allow_tf32 = args.precision != "f32"  # of f16 what autocast leaves in f32
    args.steps = args.steps or steps
    if case in STEPS:
        return step(args, case)
    if case.startswith("augment"):
        return augment(args, case)
    return {"queue": queue, "knn": knn, "probe": probe}[case](args)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int, help="measured repetitions")
    parser.add_argument("--queue-length", type=int)
    parser.add_argument("-k", type=int)
    parser.add_argument("--queries", type=int, help="of the queue")
    parser.add_argument("--batch", type=int, help="images of a step")
    parser.add_argument("--device", type=with_index, default="cpu", help="cpu, cuda or cuda:N, for steps and the queue")
    parser.add_argument("--precision", choices=("f32", "tf32", "f16", "bf16"), default="f32", help="f16, bf16: of a step by autocast")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images to augment")
    parser.add_argument("--compile", action="store_true", help="torch.compile both branches of a step")
    parser.add_argument("--bf16", action="store_true", help="--precision bf16")
    args = parser.parse_args()
    args.precision = "bf16" if args.bf16 else args.precision
    unfit = [case for case in args.cases if case.startswith("augment") or case in ("knn", "probe")]
    if unfit and (args.device.type, args.precision) != ("cpu", "f32"):
        parser.error(f"{', '.join(unfit)}: on the CPU in f32 only")
    if len(args.cases) == 1:
        rows = list(measure(args, args.cases[0]))
    else:
        rest = [word for word in sys.argv[1:] if word not in args.cases]
        rows = []
        for case in args.cases:
            done = subprocess.run([sys.executable, __file__, case, *rest], stdout=subprocess.PIPE, check=True)
            rows += json.loads(done.stdout)["cases"]
    print(json.dumps({"cases": rows}))


if __name__ == "__main__":
    main()
