"""MobileNetV3-Small."""

from configs import common


def get_config(argument: str = "digits"):
    return common.choose_task("mobilenet_v3_small", argument)
