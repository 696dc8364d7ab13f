"""A Linux VM with cgroup v2 in QEMU, with or without KVM: build its image, boot it, use it, end it.

`image` builds what a guest boots from, cached by the hash of its recipe; `machine` runs QEMU;
`state` saves a booted guest and restores it; `guest` runs commands inside; `persistent_vm` keeps
VMs that outlive the command that booted them; `box` builds a Vagrant box, `vagrant` uses a Vagrant
machine. A guest that dies, panics or does not answer in time is BROKEN, with the last lines of its
serial console: it can never look like a pass.

Not covered: other processors than x86-64.
"""
