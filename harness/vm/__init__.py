"""A cgroup v2 Linux in QEMU, with or without KVM: build its image, boot it, use it, end it surely.

`image` builds what a guest boots from and keeps it by the hash of its recipe; `machine` runs QEMU;
`state` saves a booted guest and restores it; `guest` talks to what runs inside; `standing` keeps
guests that outlive the command that booted them. A guest that dies, panics or does not answer in
time is BROKEN, with the last lines of its serial console: it can never look like a pass.

Not covered: other processors than x86-64.
"""
