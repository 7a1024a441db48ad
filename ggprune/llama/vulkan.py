"""The devices that this machine's Vulkan drivers offer, whatever llama.cpp was built with.

Run as a program, it prints them: a driver that crashes ends only the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import json

#: ``VkPhysicalDeviceType``: what computes.
INTEGRATED, DISCRETE, SOFTWARE = 1, 2, 4
_CREATE_INFO = 1  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
_MOST = 16
_NAMES = ("libvulkan.so.1", "vulkan-1.dll", "libvulkan.1.dylib")


class _CreateInfo(ctypes.Structure):
    """``VkInstanceCreateInfo``: nothing is asked for."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    )


class _Properties(ctypes.Structure):
    """The start of ``VkPhysicalDeviceProperties``, with room for all of it."""

    _fields_ = (
        ("api_version", ctypes.c_uint32),
        ("driver_version", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("type", ctypes.c_int),
        ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_uint64 * 128),
    )


def found() -> list[tuple[int, int, str]]:
    """Devices as (type, PCI number of the vendor, name); none without Vulkan."""
    vulkan = None
    for name in _NAMES:
        with contextlib.suppress(OSError):
            vulkan = vulkan or ctypes.CDLL(name)
    if vulkan is None:
        return []
    instance, count = ctypes.c_void_p(), ctypes.c_uint32(_MOST)
    handles, properties = (ctypes.c_void_p * _MOST)(), _Properties()
    info = _CreateInfo(type=_CREATE_INFO)
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != 0:
        return []
    if vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles) < 0:
        return []
    devices = []
    for handle in handles[: count.value]:
        vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), ctypes.byref(properties))
        devices.append((properties.type, properties.vendor, properties.name.decode()))
    return devices


if __name__ == "__main__":
    print(json.dumps(found()))
