"""MediaPipe Holistic's landmarks by the names of COCO-WholeBody: what each is called here, and which have no partner.

A landmark that both skeletons have carries COCO-WholeBody's name; the others keep MediaPipe's. docs/formats.md has the
table joint by joint.
"""

from __future__ import annotations

from slrfast import graphs

_SIDES = ("left", "right")
BODY = (
    *("nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer"),
    *("left_ear", "right_ear", "mouth_left", "mouth_right"),
    *(f"{s}_{j}" for j in ("shoulder", "elbow", "wrist", "pinky", "index", "thumb") for s in _SIDES),
    *(f"{s}_{j}" for j in ("hip", "knee", "ankle", "heel", "big_toe") for s in _SIDES),
)
"""The 33 pose landmarks in MediaPipe's order; its "foot index" stands for the big toe."""
HANDS = tuple(f"{s}_hand_{joint}" for s in _SIDES for joint in graphs.HAND_NAMES)
"""2 x 21 hand landmarks, left hand first; the order inside a hand is the same in both skeletons."""
FACE = tuple(f"face_{i}" for i in range(68))

FACE_MESH = (
    *(127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356),  # jaw, right to left
    *(70, 63, 105, 66, 107),  # right brow
    *(336, 296, 334, 293, 300),  # left brow
    *(168, 6, 195, 4),  # nose bridge to tip
    *(98, 97, 2, 326, 327),  # nose base
    *(33, 160, 158, 133, 153, 144),  # right eye
    *(362, 385, 387, 263, 373, 380),  # left eye
    *(61, 40, 37, 0, 267, 270, 291, 321, 405, 17, 181, 91),  # outer lips
    *(78, 81, 13, 311, 308, 402, 14, 178),  # inner lips
)
"""The landmark of the face mesh (0 to 467) that lies at each of the 68 face points; right is the person's right."""
MESH_POINTS = 468
