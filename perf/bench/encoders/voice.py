"""Speech out of a machine: eSpeak NG by the library inside a wheel, so that nothing has to be installed."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench.encoders import texts
from tokenrt.perf.bench.encoders.wheels import Wheel
from tokenrt.perf.bench.encoders.whisper import RATE
from tokenrt.perf.demo.subject import Array

WHEEL = Wheel("espeakng-loader", "0.2.4")
SECONDS = 30
"""Sound that Whisper takes at a time."""

RETRIEVAL, UTF8 = 1, 1
VOICES = ("en-us", "en-gb", "en-gb-scotland")
"""Accents, taken in turn."""

PAUSE = 0.3
"""Seconds of silence behind a sentence."""


class Voice:
    """The library, ready to speak. Raises: TokenrtError where the wheel, or a library of this system in it, cannot be had."""

    def __init__(self) -> None:
        if platform.system() != "Linux":
            raise TokenrtError(
                "speech is synthesised by the eSpeak NG library for Linux, and this is another system"
            )
        folder = WHEEL.unpacked() / "espeakng_loader"
        try:
            self.library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        except OSError as cause:
            raise TokenrtError(
                f"eSpeak NG, out of the wheel {WHEEL.package}, cannot be loaded: {cause}"
            ) from cause
        self.rate = self.library.espeak_Initialize(RETRIEVAL, 0, str(folder).encode(), 0)
        if self.rate <= 0:
            raise TokenrtError(
                f"eSpeak NG, out of the wheel {WHEEL.package}, does not find its data in {folder}"
            )

    def say(self, text: str, accent: str) -> Array:
        """The sound of a text, [samples] float32 within -1 to 1 at RATE. Raises: TokenrtError where nothing comes."""
        parts = list[Array]()
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

        def heard(samples: ctypes._Pointer[ctypes.c_short], count: int, events: object) -> int:
            del events
            if count > 0:
                parts.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
            return 0

        callback, spoken = kind(heard), text.encode()
        self.library.espeak_SetSynthCallback(callback)
        self.library.espeak_SetVoiceByName(accent.encode())
        self.library.espeak_Synth(spoken, ctypes.c_size_t(len(spoken) + 1), 0, 0, 0, UTF8, None, None)
        self.library.espeak_Synchronize()
        if not parts:
            raise TokenrtError(f"eSpeak NG says nothing of {text!r} in the accent {accent}")
        return resampled(np.concatenate(parts), self.rate)


def resampled(sound: Array, rate: int) -> Array:
    """The sound at RATE instead of `rate`, bands above what RATE can hold left out."""
    count = round(len(sound) * RATE / rate)
    bands = np.fft.rfft(sound)[: count // 2 + 1]
    return np.asarray(np.fft.irfft(bands, count) * count / len(sound), np.float32)


@dataclass(frozen=True)
class Clip:
    """A sound [samples] of up to 30 s, and what is said in it."""

    sound: Array
    said: str


@cache
def clips(count: int) -> list[Clip]:
    """So many, filled with as many of the sentences as fit, of all subjects in turn. Raises: TokenrtError."""
    voice, found = Voice(), list[Clip]()
    own, room = list[tuple[Array, str]](), SECONDS * RATE
    for text in spread(texts.sentences()):
        sound = voice.say(text, VOICES[len(found) % len(VOICES)])
        sound = np.concatenate([sound, np.zeros(round(PAUSE * RATE), np.float32)])
        if len(sound) > room:
            found.append(Clip(np.concatenate([part for part, _ in own]), " ".join(said for _, said in own)))
            own, room = [], SECONDS * RATE
        if len(found) == count:
            return found
        own.append((sound, text))
        room -= len(sound)
    raise TokenrtError(f"the sentences fill {len(found)} clips of {SECONDS} s, not {count}")


def spread(lines: Sequence[str], group: int = 10) -> list[str]:
    """The first line of every group, then the second of every one, and so on."""
    return [line for start in range(group) for line in lines[start::group]]
