"""The engine needs NumPy and nothing else: with all the rest unimportable, every layer, rule, net and solver runs."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

BLOCKED = ("numba", "llvmlite", "scipy", "torch", "sklearn", "PIL", "pydantic", "typer", "matplotlib")


def _run(code: str) -> str:
    """What `code` prints in a process in which nothing but NumPy and the standard library can be imported."""
    block = f"import sys\nfor name in {BLOCKED!r}:\n    sys.modules[name] = None\n"
    command = [sys.executable, "-W", "error", "-c", block + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_layer_runs() -> None:
    printed = _run("""
        import numpy as np
        from normlab.scratch import im2col_layers as columns, layers as l
        x2, x4, two = np.random.rand(4, 6), np.random.rand(2, 4, 6, 6), {"stride": 2, "pad": 1}
        v6, v4, c4 = np.ones(6), np.ones(4), np.ones((1, 4, 1, 1))
        w, pool = np.ones((3, 4, 3, 3)), {"pool_height": 2, "pool_width": 2, "stride": 2}
        train, test = {"mode": "train"}, {"mode": "test"}
        runs = [
            (l.affine_forward, l.affine_backward, (x2, np.ones((6, 3)), np.ones(3))),
            (l.relu_forward, l.relu_backward, (x2,)),
            (l.dropout_forward, l.dropout_backward, (x2, {"p": 0.5, **train})),
            (l.batchnorm_forward, l.batchnorm_backward, (x2, v6, v6, dict(train))),
            (l.batchnorm_forward, l.batchnorm_backward_alt, (x2, v6, v6, dict(test))),
            (l.layernorm_forward, l.layernorm_backward, (x2, v6, v6, {})),
            (l.spatial_batchnorm_forward, l.spatial_batchnorm_backward, (x4, v4, v4, dict(train))),
            (l.spatial_groupnorm_forward, l.spatial_groupnorm_backward, (x4, c4, c4, 2, {})),
            (l.spatial_layernorm_forward, l.spatial_layernorm_backward, (x4, c4, c4, {})),
            (l.spatial_instancenorm_forward, l.spatial_instancenorm_backward, (x4, c4, c4, {})),
            (l.spatial_batchinstancenorm_forward, l.spatial_batchinstancenorm_backward, (x4, v4, v4, v4, dict(train))),
            (l.conv_forward_naive, l.conv_backward_naive, (x4, w, np.ones(3), two)),
            (l.max_pool_forward_naive, l.max_pool_backward_naive, (x4, pool)),
            (columns.conv_forward_im2col, columns.conv_backward_im2col, (x4, w, np.ones(3), two)),
            (columns.max_pool_forward_im2col, columns.max_pool_backward_im2col, (x4, pool)),
        ]
        for forward, backward, arguments in runs:
            out, cache = forward(*arguments)
            backward(out, cache)
        scores, y = np.random.rand(4, 3), np.arange(4) % 3
        l.softmax_loss(scores, y), l.svm_loss(scores, y)
        print(len(runs), "pairs;", sorted(set(sys.modules) & {"normlab.kernels", "normlab.norms", "normlab.layers"}))
    """)
    assert printed == "15 pairs; []\n"


def test_networks_are_trained_with_every_rule() -> None:
    printed = _run("""
        import warnings
        import numpy as np
        from normlab.scratch import gradient_check, optim
        from normlab.scratch.nets import ConvNet, FullyConnectedNet
        from normlab.scratch.solver import Solver
        rng = np.random.RandomState(0)
        y = np.arange(40) % 2
        X = rng.rand(40, 1, 6, 6) + y[:, None, None, None]
        data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for norm in (None, "batchnorm", "groupnorm"):
                net = ConvNet((1, 6, 6), 4, 3, 8, 2, None, normalization=norm, rng=rng)
                Solver(net, data, update_rule="adam", num_epochs=12, batch_size=20, verbose=False, rng=rng).train()
        print(len(caught), caught[0].message, caught[0].filename)
        for rule in optim.RULES:
            for norm in (None, "batchnorm", "layernorm"):
                net = FullyConnectedNet([8], 36, 2, 0.9, norm, weight_scale=0.1, rng=rng)
                solver = Solver(net, data, update_rule=rule, num_epochs=3, verbose=False, rng=rng)
                solver.train()
                assert np.isfinite(solver.loss_history).all()
    """)
    count, message = printed.split(" ", 1)
    assert count == "3"
    assert "Numba cannot be imported: convolutions run as matrix products in NumPy" in message
    assert message.strip().endswith("<string>"), "the warning points at the caller"


@pytest.mark.parametrize(
    "call",
    [
        "conv_forward_fast(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), np.ones(1), {})",
        "max_pool_forward_fast(np.ones((1, 1, 4, 4)), {'pool_height': 2, 'pool_width': 2, 'stride': 2})",
    ],
)
def test_fast_layers_say_in_one_line_what_is_missing(call: str) -> None:
    printed = _run(f"""
        import numpy as np
        from normlab.scratch import fast_layers
        assert not fast_layers.available()
        try:
            fast_layers.{call}
        except ValueError as error:
            print(error)
    """)
    assert printed.count("\n") == 1
    assert "normlab.scratch.fast_layers needs Numba, which cannot be imported" in printed
    assert "pip install numba, or use normlab.scratch.im2col_layers" in printed


def test_the_notebooks_of_a_course_run() -> None:
    printed = _run("""
        import pkgutil, warnings
        from importlib import import_module
        import numpy as np
        from normlab.scratch import course
        for module in pkgutil.walk_packages(course.__path__, course.__name__ + "."):
            import_module(module.name)
        from normlab.scratch.course.classifiers.cnn import ThreeLayerConvNet
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = ThreeLayerConvNet((1, 4, 4), 2, 3, 5, 3)
            out, cache = import_module("normlab.scratch.course.layer_utils").conv_relu_pool_forward(
                np.ones((2, 1, 4, 4)), np.ones((2, 1, 3, 3)), np.ones(2), {"stride": 1, "pad": 1},
                {"pool_height": 2, "pool_width": 2, "stride": 2},
            )
        loss, grads = model.loss(np.ones((2, 1, 4, 4)), np.arange(2))
        print(sorted(grads), out.shape, {str(w.category.__name__) for w in caught})
    """)
    assert printed == "['W1', 'W2', 'W3', 'b1', 'b2', 'b3'] (2, 2, 2, 2) {'UserWarning'}\n"
