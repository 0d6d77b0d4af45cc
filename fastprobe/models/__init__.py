"""Hugging Face models: their points, and their layers in any order. No other package knows their modules.

Layers by running               trace, stacks
Attention and FFN of a layer    steps (equations decide), inspection, layouts
Names and places of points      points, places, layer_points, resolve
Checks of the resolved points   equations, identities
Contracts of a runner           protocols (``Recorder``, ``Stack``), runner (selects one)
Runner of any model             recorder, stack, sublayers, forwards, calling
Runner without padding          unpadded/, masked_head, bert_families
Runner of single layers         layer_reader, packed_calls, one_by_one (selects and refuses), unpadded/layer_reader
Weights that Accelerate placed  placement, offloaded
Live models in another order    permute (swap, skip, repeat, reverse), layer_order, caches
Other changes to a model        skip_scale, edits, element_weights, linear_mlp
Loading                         loading, bert_variants
"""
