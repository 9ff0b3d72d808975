"""What a training run will need and take, from compiling its step alone.

May import `training` and the rooms below it; `commands` alone imports it.
"""
