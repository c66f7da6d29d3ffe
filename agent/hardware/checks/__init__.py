"""The checks of the doctor, by what they look at: drivers, devices, containers, host."""
