"""The rules of the paper and of its authors' code, written out naively over a path of latents."""


def official(path, threshold, max_skip):
    """The authors' loop, written out naively: one decision list for the whole tensor.

    path: y_{-1}, y_0, ..., the latents before and after every step.
    """
    differences, skips, computed = {}, [], []
    skip_next = False
    for k in range(len(path) - 1):
        computed.append(k <= 3 or not skip_next)
        if k >= 1:
            differences[k] = (path[k + 1] - path[k]).abs().mean().item()
        if k >= 3:
            if len(skips) >= 5 and all(skips[-max_skip:]):
                skip_next = False
            else:
                d, d1, d2 = (differences[k - j] for j in range(3))
                skip_next = abs((d + d2) / 2 - d1) <= threshold * d1
            skips.append(skip_next)
    return computed


def paper(path, threshold, max_skip, warmup):
    refreshed, skipped, skip_next = [], 0, False
    for i in range(len(path) - 1):
        refreshed.append(not skip_next)
        skipped = skipped + 1 if skip_next else 0
        skip_next = False
        if i >= 2 and i + 1 >= warmup and skipped < max_skip:
            third = path[i + 1] - 3 * path[i] + 3 * path[i - 1] - path[i - 2]
            skip_next = bool(third.norm() < threshold * (path[i] - path[i - 1]).norm())
    return refreshed
