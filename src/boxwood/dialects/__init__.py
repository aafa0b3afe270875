"""Other generations' and other systems' wire protocols, translated to the core. A dialect holds translation only."""
