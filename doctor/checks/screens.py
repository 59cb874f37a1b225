"""Whether the matrix products that screen selections keep their error bounds on this device."""

from collections.abc import Sequence

import torch

from ...train.backends.bounds import Product
from ..notes import Notes

CPU_PRODUCTS: tuple[Product, ...] = ("float32", "bfloat16", "int8")


@torch.no_grad()
def check_screens(notes: Notes, backend: str, device: torch.device, widths: Sequence[int]) -> None:
    """Check the screens of the backend ``backend`` on rows of ``widths``; ``plain`` and others have none.

    A screen that breaks its bounds is never used, so that selections stay right, but it should not be: on the
    CPU a product that this processor lacks is left out.
    """
    if backend == "triton":
        from ...train.backends.triton.screen import keeps_bounds as triton_keeps_bounds

        for width in widths:
            name = f"the bfloat16 screen keeps its bounds, D = {width}"
            with notes.attempt(name):
                notes.check(name, triton_keeps_bounds(device, width))
    elif backend == "compiled":
        from ...train.backends.compiled.selection.cheapest_product import keeps_bounds

        for product in CPU_PRODUCTS:
            try:
                kept = [keeps_bounds(product, width) for width in widths]
            except RuntimeError as error:  # torch has no such product for this processor
                notes.leave_out(f"the {product} screen", str(error).splitlines()[0])
                continue
            if all(kept) or product != "int8":
                notes.check(f"the {product} screen keeps its bounds", all(kept))
            else:
                notes.leave_out(f"the {product} screen", "its sums overflow here, so that it is not used")
