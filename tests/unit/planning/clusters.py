"""Random clusters and bundles for the property tests."""

from dataclasses import replace

from hypothesis import strategies as st

from pipelines.planning.fit import SHARES, Bundle, Kept
from pipelines.planning.inventory import Inventory, Node, NodeGroup

GIB = 2**30
ACCELERATORS = ("L4", "A100", "T4")


@st.composite
def make_nodes(draw, max_size=5):
    """Nodes of every kind: busy, draining, without memory known, with fewer cores than logical CPUs."""
    nodes = []
    for number in range(draw(st.integers(1, max_size))):
        cpus = draw(st.integers(0, 96))
        gpus = draw(st.sampled_from([0, 0, 1, 2, 4, 8]))
        memory = draw(st.sampled_from([0, 8, 32, 256])) * GIB
        nodes.append(
            Node(
                name=f"n{number}",
                cpus=float(cpus),
                memory_bytes=memory,
                gpus=gpus,
                accelerator=draw(st.sampled_from(ACCELERATORS)) if gpus else None,
                labels=draw(st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])),
                used_cpus=draw(st.integers(0, cpus)) if draw(st.booleans()) else 0.0,
                used_gpus=draw(st.sampled_from([0, 0.25, 1])) if gpus else 0.0,
                used_memory_bytes=memory // 4 if draw(st.booleans()) else 0,
                is_draining=draw(st.sampled_from([False, False, False, True])),
                real_cpus=draw(st.sampled_from([None, None, 2.0, float(max(1, cpus - 2))])),
            )
        )
    return tuple(nodes)


@st.composite
def make_inventories(draw):
    """Nodes, and groups that may be added."""
    nodes = draw(make_nodes())
    shapes = draw(make_nodes(max_size=2))
    groups = tuple(
        NodeGroup(
            replace(shape, name=f"g{number}", group=f"g{number}", is_draining=False, used_cpus=0, used_gpus=0),
            draw(st.integers(1, 6)),
        )
        for number, shape in enumerate(shapes)
    )
    return Inventory(nodes, groups if draw(st.booleans()) else ())


@st.composite
def make_bundles(draw):
    """Whole and shared GPUs, whole and fractional CPUs."""
    gpus = draw(st.sampled_from([0.0, 0.0, 1.0, 2.0, *(1 / number for number in SHARES)]))
    return Bundle(
        cpus=draw(st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 7.0])),
        gpus=gpus,
        memory_bytes=draw(st.sampled_from([0, 1, 3, 20])) * GIB,
        accelerator=draw(st.sampled_from([None, *ACCELERATORS])) if gpus else None,
        labels=draw(st.sampled_from([{}, {}, {"zone": "a"}])),
        fills_cores=draw(st.booleans()),
    )


make_kept = st.builds(Kept, st.sampled_from([0.0, 1.0, 2.0, 3.0]), st.sampled_from([0.0, 4.0, 8.0]))
