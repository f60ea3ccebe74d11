import jax

# Several devices show whether a result depends on how many there are.
jax.config.update("jax_num_cpu_devices", 4)
