"""Brings nets and solvers from before Caffe 1.0 into today's form, as the original does when it reads them.

A net passes through these in order, each only where it is needed:

    V0 layers      ``layers { layer { type: "conv" } }``; padding layers become the pad of what follows
    data fields    scale, mean_file, crop_size and mirror move to ``transform_param``
    V1 layers      ``layers { type: CONVOLUTION }`` become ``layer { type: "Convolution" }``
    inputs         ``input`` and ``input_dim`` or ``input_shape`` become an Input layer
    batch norm     three params in a BatchNorm layer: their learning rates become 0

What becomes what is in the tables below; the functions only apply them.  All of them work on every class of
``NetParameter`` (see `message.wire_class`), and change the message in place.
"""

from __future__ import annotations

import logging
from typing import Any

from caffe_lite.errors import NetError, SolverError

logger = logging.getLogger("caffe_lite")

# V0 layer type -> V1 layer type.
V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}

# V0 layer type -> the V1 message that its options belong to.
V0_MESSAGES = {
    "concat": "concat_param",
    "conv": "convolution_param",
    "data": "data_param",
    "dropout": "dropout_param",
    "hdf5_data": "hdf5_data_param",
    "images": "image_data_param",
    "infogain_loss": "infogain_loss_param",
    "innerproduct": "inner_product_param",
    "lrn": "lrn_param",
    "pool": "pooling_param",
    "window_data": "window_data_param",
}

# V0 option -> its name in the V1 message, and the V0 layer types that have it.
V0_OPTIONS = {
    "num_output": ("num_output", ("conv", "innerproduct")),
    "biasterm": ("bias_term", ("conv", "innerproduct")),
    "weight_filler": ("weight_filler", ("conv", "innerproduct")),
    "bias_filler": ("bias_filler", ("conv", "innerproduct")),
    "pad": ("pad", ("conv", "pool")),
    "kernelsize": ("kernel_size", ("conv", "pool")),
    "group": ("group", ("conv",)),
    "stride": ("stride", ("conv", "pool")),
    "pool": ("pool", ("pool",)),
    "dropout_ratio": ("dropout_ratio", ("dropout",)),
    "local_size": ("local_size", ("lrn",)),
    "alpha": ("alpha", ("lrn",)),
    "beta": ("beta", ("lrn",)),
    "k": ("k", ("lrn",)),
    "source": ("source", ("data", "hdf5_data", "images", "window_data", "infogain_loss")),
    "batchsize": ("batch_size", ("data", "hdf5_data", "images", "window_data")),
    "rand_skip": ("rand_skip", ("data", "images")),
    "shuffle_images": ("shuffle", ("images",)),
    "new_height": ("new_height", ("images",)),
    "new_width": ("new_width", ("images",)),
    "concat_dim": ("concat_dim", ("concat",)),
    "det_fg_threshold": ("fg_threshold", ("window_data",)),
    "det_bg_threshold": ("bg_threshold", ("window_data",)),
    "det_fg_fraction": ("fg_fraction", ("window_data",)),
    "det_context_pad": ("context_pad", ("window_data",)),
    "det_crop_mode": ("crop_mode", ("window_data",)),
}

# V0 options that every layer type takes -> their names in `transform_param`.
V0_TRANSFORM_OPTIONS = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}

# V1 layer type -> the message whose transformation fields move to `transform_param`.
TRANSFORMED = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}
TRANSFORM_FIELDS = ("scale", "mean_file", "crop_size", "mirror")

# V1 layer types whose names today are not simply their words in camel case (INNER_PRODUCT, InnerProduct).
V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}

# V1 lists with one entry a param -> the field of ``ParamSpec``.
V1_PARAM_SPECS = {
    "param": "name",
    "blob_share_mode": "share_mode",
    "blobs_lr": "lr_mult",
    "weight_decay": "decay_mult",
}

SOLVER_TYPES = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}


def upgrade_net(net_param: Any, path: str = "") -> bool:
    """Bring a ``NetParameter`` into today's form, and return whether that changed it; `path` is for the log.

    Raises:
        NetError: the net mixes formats, has an unknown V0 layer type, or pads what cannot be padded.
    """
    changed = False
    if any(layer.HasField("layer") for layer in net_param.layers):
        _log_attempt("input file specified using deprecated V0LayerParameter", path)
        if _upgrade_v0(net_param):
            _log_success("file specified using deprecated V0LayerParameter")
        else:
            _log_problems("V0NetParameter to NetParameter")
        _log_note("not support V0NetParameter; save the net in the new format")
        changed = True
    if any(_has_transform_fields(layer) for layer in net_param.layers):
        _log_attempt("input file specified using deprecated transformation parameters", path)
        _upgrade_data_fields(net_param)
        _log_success("file specified using deprecated data transformation parameters.")
        _log_note("only support transform_param messages for transformation fields")
        changed = True
    if net_param.layers:
        _log_attempt("input file specified using deprecated V1LayerParameter", path)
        _upgrade_v1(net_param)
        _log_success("file specified using deprecated V1LayerParameter")
        changed = True
    if net_param.input:
        _log_attempt("input file specified using deprecated input fields", path)
        _upgrade_inputs(net_param)
        _log_success("file specified using deprecated input fields.")
        _log_note("only support input layers and not input fields")
        changed = True
    old_batch_norms = [layer for layer in net_param.layer if layer.type == "BatchNorm" and len(layer.param) == 3]
    if old_batch_norms:
        _log_attempt("batch norm layers using deprecated params", path)
        _upgrade_batch_norms(old_batch_norms)
        _log_success("batch norm layers using deprecated params.")
        changed = True
    return changed


def upgrade_solver(solver_param: Any, path: str = "") -> bool:
    """Turn the enum ``solver_type`` of a ``SolverParameter`` into the string ``type``; return whether it was there.

    Raises:
        SolverError: both are there.
    """
    if not solver_param.HasField("solver_type"):
        return False
    if solver_param.HasField("type"):
        raise SolverError("the solver has both solver_type and type. Expected one of them. Remove solver_type.")
    _log_attempt("input file specified using deprecated 'solver_type' field (enum)'", path)
    solver_param.type = SOLVER_TYPES[solver_param.SolverType.Name(solver_param.solver_type)]
    solver_param.ClearField("solver_type")
    _log_success("file specified using deprecated 'solver_type' field (enum) to 'type' field (string).")
    _log_note("only support 'type' field (string) for a solver's type")
    return True


# -- V0


def _upgrade_v0(net_param: Any) -> bool:
    """Turn V0 layers into V1 layers; return whether every option found its place."""
    _fold_padding(net_param)
    old = type(net_param)()
    old.CopyFrom(net_param)
    net_param.Clear()
    # What V0 nets did not have (state, input_shape) is dropped, as the original does.
    for field in ("name", "force_backward"):
        if old.HasField(field):
            setattr(net_param, field, getattr(old, field))
    net_param.input.extend(old.input)
    net_param.input_dim.extend(old.input_dim)
    compatible = True
    for connection in old.layers:
        compatible &= _upgrade_v0_layer(connection, net_param.layers.add())
    return compatible


def _fold_padding(net_param: Any) -> None:
    """Remove padding layers, and give their pad to the layers that they feed."""
    kept = []
    producers: dict[str, Any] = dict.fromkeys(net_param.input)
    for connection in net_param.layers:
        for index, bottom in enumerate(connection.bottom):
            if bottom not in producers:
                raise NetError(f"layer '{connection.layer.name}': no layer before it makes its bottom '{bottom}'.")
            producer = producers[bottom]
            if producer is not None and producer.layer.type == "padding":
                _check_padding(producer, connection)
                connection.layer.pad = producer.layer.pad
                connection.bottom[index] = producer.bottom[0]
        producers.update(dict.fromkeys(connection.top, connection))
        if connection.layer.type != "padding":
            kept.append(connection)
    folded = type(net_param)()
    folded.layers.extend(kept)
    net_param.ClearField("layers")
    net_param.layers.extend(folded.layers)


def _check_padding(padding: Any, user: Any) -> None:
    """Raise `NetError` unless the layer `user` can take over the pad of the layer `padding`."""
    name = padding.layer.name
    if user.layer.type not in ("conv", "pool"):
        raise NetError(
            f"padding layer '{name}' feeds layer '{user.layer.name}' of type '{user.layer.type}'. "
            "Expected a conv or pool layer."
        )
    counts = (len(padding.bottom), len(padding.top), len(user.bottom))
    if counts != (1, 1, 1):
        raise NetError(
            f"padding layer '{name}' and layer '{user.layer.name}' must have one bottom, and '{name}' one top. "
            f"Received {counts[0]} and {counts[2]} bottoms, {counts[1]} tops."
        )


def _upgrade_v0_layer(connection: Any, layer: Any) -> bool:
    """Fill the V1 `layer` from a V0 `connection`; return whether every option found its place."""
    layer.bottom.extend(connection.bottom)
    layer.top.extend(connection.top)
    compatible = True
    for field, value in connection.layer.ListFields():
        compatible &= _upgrade_v0_field(field.name, value, connection.layer.type, layer)
    return compatible


def _upgrade_v0_field(name: str, value: Any, old_type: str, layer: Any) -> bool:
    """Put field `name` of a V0 layer where V1 has it; return False, and log it, if V1 has no place for it."""
    if name == "type":
        if value not in V0_TYPES:
            raise NetError(f"unknown V0 layer type '{value}'. Known types: {', '.join(V0_TYPES)}.")
        layer.type = layer.LayerType.Value(V0_TYPES[value])
    elif name in ("name", "blobs", "blobs_lr", "weight_decay"):
        _assign(layer, name, value)
    elif name in V0_TRANSFORM_OPTIONS:
        setattr(layer.transform_param, V0_TRANSFORM_OPTIONS[name], value)
    elif name == "hdf5_output_param" and old_type == "hdf5_output":
        layer.hdf5_output_param.CopyFrom(value)
    elif name in V0_OPTIONS and old_type in V0_OPTIONS[name][1]:
        _assign(getattr(layer, V0_MESSAGES[old_type]), V0_OPTIONS[name][0], value)
    elif name in V0_OPTIONS or name == "hdf5_output_param":
        logger.error("Unknown parameter %s for layer type %s", name, old_type)
        return False
    return True


# -- V1


def _type_name(layer: Any) -> str:
    """Return the name of a V1 layer's type in the enum."""
    return str(layer.LayerType.Name(layer.type))


def _has_transform_fields(layer: Any) -> bool:
    """Whether a V1 layer has transformation fields outside `transform_param`."""
    options = TRANSFORMED.get(_type_name(layer))
    return options is not None and any(getattr(layer, options).HasField(field) for field in TRANSFORM_FIELDS)


def _upgrade_data_fields(net_param: Any) -> None:
    """Move transformation fields of V1 layers into `transform_param`."""
    for layer in net_param.layers:
        if _type_name(layer) not in TRANSFORMED:
            continue
        options = getattr(layer, TRANSFORMED[_type_name(layer)])
        # Both messages are there afterwards, even if they are empty: the original makes them so.
        options.SetInParent()
        layer.transform_param.SetInParent()
        for field in TRANSFORM_FIELDS:
            if options.HasField(field):
                setattr(layer.transform_param, field, getattr(options, field))
                options.ClearField(field)


def _upgrade_v1(net_param: Any) -> None:
    """Turn V1 layers (`layers`) into today's (`layer`)."""
    if net_param.layer:
        raise NetError(
            "the net has both 'layer' and 'layers' fields. Expected one format. "
            'Rewrite layers { type: CONVOLUTION ... } as layer { type: "Convolution" ... }.'
        )
    for old in net_param.layers:
        _upgrade_v1_layer(old, net_param.layer.add())
    net_param.ClearField("layers")


def _upgrade_v1_layer(old: Any, layer: Any) -> None:
    """Fill `layer` from the V1 layer `old`.  Most fields have the same names in both."""
    for field, value in old.ListFields():
        if field.name == "type":
            name = _type_name(old)
            layer.type = V1_TYPES.get(name, "".join(word.capitalize() for word in name.split("_")))
        elif field.name in V1_PARAM_SPECS:
            for index, entry in enumerate(value):
                if index == len(layer.param):
                    layer.param.add()
                setattr(layer.param[index], V1_PARAM_SPECS[field.name], entry)
        else:
            _assign(layer, field.name, value)


# -- inputs and batch norm


def _upgrade_inputs(net_param: Any) -> None:
    """Turn the fields `input`, `input_shape` and `input_dim` into an Input layer before all others."""
    shapes = [list(shape.dim) for shape in net_param.input_shape]
    if not shapes:
        dims = list(net_param.input_dim)
        shapes = [dims[start : start + 4] for start in range(0, len(dims), 4)]
    # A net with inputs of no shape comes from an old .caffemodel, where only the weights count.
    if shapes:
        if len(shapes) < len(net_param.input) or (not net_param.input_shape and len(net_param.input_dim) % 4):
            raise NetError(
                f"the net's {len(net_param.input)} inputs need an input_shape or four input_dims each. "
                f"Received {len(net_param.input_shape)} input_shapes and {len(net_param.input_dim)} input_dims."
            )
        layers = type(net_param)()
        layer = layers.layer.add(name="input", type="Input", top=net_param.input)
        for dims in shapes[: len(net_param.input)]:
            layer.input_param.shape.add(dim=dims)
        layers.layer.extend(net_param.layer)
        net_param.ClearField("layer")
        net_param.layer.extend(layers.layer)
    for field in ("input", "input_shape", "input_dim"):
        net_param.ClearField(field)


def _upgrade_batch_norms(layers: list[Any]) -> None:
    """Keep the solver away from the three params of BatchNorm layers: they are statistics."""
    for layer in layers:
        if any(spec.lr_mult != 0 for spec in layer.param):
            logger.warning(
                "Layer '%s' (BatchNorm): its params are statistics and cannot be trained. Expected lr_mult 0, received "
                "%s; all are taken as 0.",
                layer.name, ", ".join(f"{spec.lr_mult:g}" for spec in layer.param),
            )  # fmt: skip
        for spec in layer.param:
            spec.lr_mult = 0
            spec.decay_mult = 0


# -- helpers


def _assign(target: Any, name: str, value: Any) -> None:
    """Set, extend or merge field `name` of `target`, whichever it takes."""
    field = getattr(target, name)
    if hasattr(value, "MergeFrom"):  # a message or a list
        field.MergeFrom(value)
    elif hasattr(field, "append"):  # V0 has one pad, kernel size and stride where V1 has a list
        field.append(value)
    else:
        setattr(target, name, value)


def _log_attempt(what: str, path: str) -> None:
    logger.info("Attempting to upgrade %s: %s", what, path)


def _log_success(what: str) -> None:
    logger.info("Successfully upgraded %s", what)


def _log_problems(what: str) -> None:
    logger.error("Warning: had one or more problems upgrading %s (see above); continuing anyway.", what)


def _log_note(what: str) -> None:
    logger.warning("Note that future Caffe releases will %s.", what)
