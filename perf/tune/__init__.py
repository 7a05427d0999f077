"""The search for the best static plan: what is wished for, which plans compete, how they are judged, and which is recommended."""
