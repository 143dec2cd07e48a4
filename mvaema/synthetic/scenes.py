"""From a seed to a micrograph: which specimen, which view of it, and the finished image."""

import numpy as np
from .specimen import Stage
from . import grains, wires, surfaces, devices, biology
from . import optics
BUILDERS={"Particles":grains.particles,"Powder":grains.powder,"Nanowires":wires.nanowires,"Fibres":wires.fibres,"Tips":wires.tips,
"Films_Coated_Surface":surfaces.films,"Patterned_surface":surfaces.patterned,"Porous_Sponge":surfaces.porous,"MEMS_devices_and_electrodes":devices.devices,"Biological":biology.biological}
