# A kernel's launch as C++ that any compiler reads: see cuda_runtime.h.
s/([A-Za-z_][A-Za-z_0-9]*(<[^;=]*>)?)<<<([^;]*)>>>\(/gr_host::grid(\3).run(\1, /
