"""Writes loss_paper_detach_projection*.safetensors: SNCLR's loss where the gradient of the positiveness w stops at y1.

    pip install torch safetensors && python make_detach_projection.py [--check]

--check writes nothing and fails where a file here holds something else. manifest.json states the formula and each case's
settings. Inputs are drawn in f32, everything else is computed in f64; `out.X` and `grad.X` (of the loss) are f64, `out32.X` and
`grad32.X` the same rounded to f32.
"""

import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
N, D, QUEUE, K = 6, 8, 32, 3
# Name, tau, whether f1 and f2 get unit vectors.
CASES = [("loss_paper_detach_projection", 0.1, True), ("loss_paper_detach_projection_rawatt", 0.2, False)]
TRAINED = ["z1", "y1", "f1", "f2"]
# Sums may be taken in another order by another version of PyTorch.
TOLERANCE = 1e-12


def inputs():
    """Those of the other loss_paper cases. Rows of the queue have lengths of their own."""
    generator = torch.Generator().manual_seed(11)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    x = {"z1": draw(N, D), "y1": draw(N, D), "y2": draw(N, D), "queue": draw(QUEUE, D)}
    x["queue"] *= 0.5 + torch.rand(QUEUE, 1, generator=generator)
    x["f1"], x["f2"] = draw(D, D), draw(D, D)
    return x


def outputs(x, tau, unit):
    """The loss and what leads to it. gamma is 1."""
    found = (F.normalize(x["y2"], dim=1) @ F.normalize(x["queue"], dim=1).T).topk(K, dim=1).indices
    near = x["queue"][found]
    # The gradient of w reaches f1 and f2, not y1.
    a, b = x["y1"].detach(), near
    if unit:
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    scores = torch.einsum("nd,nkd->nk", F.linear(a, x["f1"]), F.linear(b, x["f2"]))
    log_w = torch.log_softmax(scores, dim=1)
    candidates = F.normalize(torch.cat([x["y2"].unsqueeze(1), near], dim=1), dim=-1)
    logits = F.normalize(x["z1"], dim=1) @ candidates.reshape(N * (K + 1), D).T / tau
    own = logits.view(N, N, K + 1)[range(N), range(N)]
    positive = torch.logsumexp(own + F.pad(log_w, (1, 0)), dim=1)
    loss = (torch.logsumexp(logits, dim=1) - positive).mean()
    return {"loss": loss, "w": log_w.exp(), "nn_idx": found, "nn": near, "logits": logits}


def case(tau, unit):
    """All tensors of a case."""
    drawn = inputs()
    x = {name: value.double().requires_grad_(name in TRAINED) for name, value in drawn.items()}
    out = outputs(x, tau, unit)
    gradients = torch.autograd.grad(out["loss"], [x[name] for name in TRAINED], allow_unused=True)
    tensors = {f"in.{name}": value for name, value in drawn.items()}
    results = {f"out.{name}": value for name, value in out.items()}
    for name, gradient in zip(TRAINED, gradients):
        results[f"grad.{name}"] = torch.zeros_like(x[name]) if gradient is None else gradient
    for name, value in results.items():
        tensors[name] = value.detach().contiguous()
        if value.is_floating_point():
            tensors[name.replace(".", "32.", 1)] = tensors[name].float()
    return tensors


def difference(made, kept):
    """What is wrong with a file's tensors; None where nothing is."""
    if made.keys() != kept.keys():
        return f"tensors {sorted(made.keys() ^ kept.keys())} are on one side alone"
    for name, value in made.items():
        other = kept[name]
        if (value.dtype, value.shape) != (other.dtype, other.shape):
            return f"{name} is {other.dtype} {tuple(other.shape)}, made {value.dtype} {tuple(value.shape)}"
        exact = name.startswith("in.") or not value.is_floating_point()
        allowed = 0.0 if exact else 1e-6 if value.dtype == torch.float32 else TOLERANCE
        off = (value.double() - other.double()).abs().max().item()
        if not off <= allowed:
            return f"{name} is off by {off:.2e}"
    return None


def main():
    torch.set_num_threads(1)
    wrong = False
    for name, tau, unit in CASES:
        made, path = case(tau, unit), HERE / f"{name}.safetensors"
        if "--check" not in sys.argv[1:]:
            save_file(made, path, metadata={"case": name})
            continue
        why = difference(made, load_file(path))
        wrong |= why is not None
        print(f"{name}: {why or 'as it is kept'}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
