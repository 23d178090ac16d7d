"""When and how much: the sparsity wanted at a step, the learning rate from one rewind to the next."""

from collections.abc import Sequence

from compression.recipe import Prune, Training


def cubic_sparsity(progress: float, final: float, initial: float = 0.0) -> float:
    """Return the sparsity at `progress` in [0, 1] of the pruning interval, rising from `initial` to `final`.

    s(p) = s_f - (s_f - s_i) (1 - p)^3: Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878), section 3. Prune
    Once for All (arXiv 2111.05754) has s_i = 0, oBERT (arXiv 2203.07259) a first step to 0.7. Progress outside [0, 1]
    is clamped.
    """
    progress = min(max(progress, 0.0), 1.0)
    return final - (final - initial) * (1.0 - progress) ** 3


def wanted_sparsity(step: int, steps: int, prune: Prune) -> float | None:
    """Return the sparsity that the masks get before `step` of `steps`, None where they stay as they are.

    With `at_epochs` there is one update at the first step of each of these epochs, on the cubic curve between the first
    and the last of them; else one every `update_every` steps from the share `start` to the share `end` of the steps,
    and on at the final sparsity to the share `reselect_until` where that is given.
    """
    if prune.at_epochs:
        first, last = prune.at_epochs[0], prune.at_epochs[-1]
        # In a short run several epochs may round to one step: the last of them counts.
        for epoch in reversed(prune.at_epochs):
            if step == min(round(epoch * steps / prune.training.epochs), steps - 1):
                progress = (epoch - first) / (last - first) if last > first else 1.0
                return cubic_sparsity(progress, prune.sparsity, prune.initial)
        return None
    begin, end = round(prune.start * steps), min(max(1, round(prune.end * steps)), steps - 1)
    last = max(end, min(round(prune.reselect_until * steps), steps - 1))
    if step in (end, last) or (begin <= step < last and (step - begin) % prune.update_every == 0):
        progress = (step - begin) / (end - begin) if end > begin else 1.0
        return cubic_sparsity(progress, prune.sparsity, prune.initial)
    return None


def learning_rate(step: int, steps: int, training: Training, pruning: Prune | None = None) -> float:
    """Linear warm-up over the first share of the steps, then the training's schedule.

    "linear": down to zero after the last step. "cyclic": see `cyclic_rate`. "rewinding": see `rewinding_factor`;
    `pruning` says when masks are updated.
    """
    warmup = training.warmup * steps
    if training.schedule == "cyclic":
        highest, epoch = training.learning_rate, step * training.epochs / steps
        rate = cyclic_rate(epoch, training.rewind_epochs, training.epochs, highest, training.lowest_rate)
        return min(rate, highest * (step + 1) / (warmup + 1))
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    if training.schedule == "rewinding" and pruning is not None:
        window = round(pruning.end * steps)
        return training.learning_rate * rewinding_factor(step, steps, warmup, window, pruning.update_every)
    return training.learning_rate * (steps - step) / (steps - warmup)


def cyclic_rate(epoch: float, rewinds: Sequence[float], epochs: float, highest: float, lowest: float) -> float:
    """Return the learning rate at `epoch` of `epochs`: linear from `highest` to `lowest`, again from each rewind on.

    oBERT (arXiv 2203.07259): a rewind with every pruning step, so that the survivors can move again.
    """
    begin = max((rewind for rewind in rewinds if rewind <= epoch), default=0.0)
    end = min((rewind for rewind in rewinds if rewind > epoch), default=epochs)
    return highest - (highest - lowest) * (epoch - begin) / (end - begin)


def rewinding_factor(step: int, steps: int, warmup: float, window: int, interval: int) -> float:
    """Factor of the learning rate after warm-up, as the authors' code of Prune Once for All computes it.

    N steps, W of them warm-up; masks are updated every R steps in a window of P steps. Inside it the factor is
    (N - P - t + floor(t / R) R) / (N - P - W), a sawtooth that starts again at every update; after it
    (N - t) / (N - P - W). With the published N, P, R, W = 100,000, 50,000, 1,000, 1,000 the teeth span 1.02 to 1.00:
    a constant rate while pruning, then linear decay.
    """
    since = step % interval if step < window else step - window
    return (steps - window - since) / (steps - window - warmup)
