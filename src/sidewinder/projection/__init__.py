"""Projected speed and memory: what a model would do on devices and links that are not at hand.

`work` counts the bytes and operations of a step, `sums` the bytes that cross ranks; `devices`,
`links` and `calibration` say how fast each goes; `model` adds them up. docs/projection.md.
"""
