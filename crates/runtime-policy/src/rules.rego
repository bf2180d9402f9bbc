# What the host may ask of the VM of one pod.
#
# The Kata agent evaluates `data.agent_policy.NAME` with the request as `input`. Everything is denied
# unless a rule here allows it. `policy_data` and `policy_container`, at the end of the document, say what the
# pod is.
#
# For each request that needs more than a yes there is a set of reasons against it: the request is
# allowed when that set is empty. So what decides is also what explains (`contrast policy test`). If a
# request has not even the shape that a rule reads, its set is undefined, and it is denied.
#
# The agent interprets these rules while a container waits. What it does natively (comparing whole values,
# sets, replacing in a text) costs it next to nothing, each call of a function as much as ten comparisons:
# so rules compare whole values first, and look only at what differs.
#
# State: an allowed request may add to `data.pstate`, which the agent keeps. Keys are
#   sandbox_id, hostname   of the sandbox, fixed by its creation
#   sandbox                id, name and namespace, fixed by the first container
#   container:ID           name of a container that exists, and whether it was started
#   started:NAME           whether that container was ever started; false if it was only created
#   volume:NAME            where the guest made that volume
#   copied:NAME            in which order files were copied whose mounts cannot be told apart by name
package agent_policy

import future.keywords.every
import future.keywords.if
import future.keywords.in

default AddARPNeighborsRequest := false
default AddSwapPathRequest := false
default AddSwapRequest := false
default CloseStdinRequest := false
default CopyFileRequest := false
default CreateContainerRequest := false
default CreateSandboxRequest := false
default DestroySandboxRequest := true
default ExecProcessRequest := false
default GetDiagnosticDataRequest := false
default GetIPTablesRequest := false
default GetMetricsRequest := true
default GetOOMEventRequest := true
default GuestDetailsRequest := true
default ListInterfacesRequest := true
default ListRoutesRequest := true
default MemAgentCompactConfig := false
default MemAgentMemcgConfig := false
default MemHotplugByProbeRequest := false
default OnlineCPUMemRequest := true
default PauseContainerRequest := false
default ReadStreamRequest := false
default RemoveContainerRequest := false
default RemoveStaleVirtiofsShareMountsRequest := false
default ReseedRandomDevRequest := false # the host must not choose what feeds the guest's randomness
default ResizeVolumeRequest := false
default ResumeContainerRequest := false
default SetGuestDateTimeRequest := false # the host must not turn back the clock by which certificates expire
default SetIPTablesRequest := false # the service mesh's rules are the guest's own
default SetPolicyRequest := false # the policy that was measured is the only one
default SignalProcessRequest := false
default StartContainerRequest := false
default StatsContainerRequest := false
default TtyWinResizeRequest := false
default UpdateContainerRequest := false
default UpdateEphemeralMountsRequest := false
default UpdateInterfaceRequest := false
default UpdateRoutesRequest := false
default VolumeStatsRequest := false
default WaitProcessRequest := false
default WriteStreamRequest := false

# ---- Reasons ----

found_at(path) := object.get(input, path, null)

reason(path, expected) := {"field": concat(".", path), "found": found_at(path), "expected": expected}

equal(path, expected) := set() if object.get(input, path, null) == expected
else := {reason(path, expected)}

# Fields of what is at a path.
differing(path, fields, expected) := {reason(array.concat(path, [field]), object.get(expected, field, null)) |
	found := found_at(path)
	some field in fields
	not found[field] == expected[field]
}

one_of(path, allowed) := set() if object.get(input, path, null) in allowed
else := {reason(path, allowed)}

nothing := {null, false, 0, "", [], {}}

# What is not there is empty.
empty(path, value, fields) := {reason(array.concat(path, [field]), "nothing") |
	some field in fields
	found := value[field]
	not found in nothing
}

# Lists in which neither order nor repetition means anything, such as capabilities.
members(value) := set() if value == null
else := found if {
	is_array(value)
	found := {member | some member in value}
}

same_members(path, fields, expected) := {reason(array.concat(path, [field]), object.get(expected, field, null)) |
	found := found_at(path)
	some field in fields
	not found[field] == expected[field]
	not members(object.get(found, field, null)) == members(expected[field])
}

text(path, expected) := set() if is_text(expected, object.get(input, path, null))
else := {reason(path, expected)}

made_of(path, characters) := set() if trim(found_at(path), characters) == ""
else := {reason(path, {"characters": characters})}

# A text is expected exactly, or with what is known of the pod filled in, or by a regular expression.
is_text(expected, found) if expected == found

else := true if strings.replace_n(known, expected.template) == found

else := true if {
	is_string(found)
	regex.match(strings.replace_n(known_escaped, expected.pattern), found)
}

# What is known of the pod.
known := {
	"$(bundle-id)": object.get(input, "container_id", ""),
	"$(sandbox-id)": sandbox.id,
	"$(sandbox-name)": sandbox.name,
	"$(sandbox-namespace)": sandbox.namespace,
	"$(hostname)": object.get(data.pstate, "hostname", ""),
}

# Names may hold dots, which must not stand for any character.
known_escaped := object.union(known, {
	"$(sandbox-name)": replace(sandbox.name, ".", "\\."),
	"$(hostname)": replace(object.get(data.pstate, "hostname", ""), ".", "\\."),
})

# Several templates at once; NUL is in none of them.
filled(templates) := {entry |
	some entry in split(strings.replace_n(known, concat("\u0000", templates)), "\u0000")
	entry != ""
}

put(key, value) := {"op": "add", "path": concat("", ["/pstate/", key]), "value": value}

container_key(id) := concat("", ["container:", id])

started_key(name) := concat("", ["started:", name])

volume_key(name) := concat("", ["volume:", name])

allowed_with(ops) := {"allowed": true, "ops": ops}

# The same for a value that was found already, such as an item of a list. An item whose check is undefined
# would silently vanish from a set, so whoever checks items also counts the checks.
differs(field, index, found, expected) := set() if found == expected
else := {{"field": sprintf(field, [index]), "found": found, "expected": expected}}

all_checked(field, items, checks) := set() if count(items) == count(checks)
else := {{"field": field, "found": items, "expected": "items that have every field"}}

every_reason(checks) := union({check | some check in checks})

# ---- The sandbox ----

is_id(path) := made_of(path, "0123456789abcdef") if count(found_at(path)) == 64
else := {reason(path, "64 hexadecimal digits")}

# One sandbox, with the id that every container will name; no code from the host: a hook is a program
# that the agent runs, a module is kernel code. Its process namespace is never that of containers: pods that share
# one say so for each container. Its host name is what `gethostname` yields in every container, and a StatefulSet's
# program may take its part from it.
CreateSandboxReasons := union({
	equal(["guest_hook_path"], ""),
	one_of(["kernel_modules"], [null, []]),
	one_of(["sandbox_pidns"], [null, false]),
	one_of(["guest_userns"], [null, false]),
	is_id(["sandbox_id"]),
	hostname_reasons,
	sandbox_storages,
	first_sandbox,
})

# An agent always says the name; what is written down by hand may lack it.
hostname_reasons := set() if object.get(input, "hostname", null) == null
else := text(["hostname"], policy_data.sandbox.hostname)

# Shared memory between containers is the guest's own. Fields that agents of some versions leave out are empty.
sandbox_storages := set() if {
	count(input.storages) == count(policy_data.sandbox.storages)
	{with_defaults(storage) | some storage in input.storages} == {storage | some storage in policy_data.sandbox.storages}
}

else := {reason(["storages"], policy_data.sandbox.storages)}

with_defaults(storage) := object.union({"shared": false, "fs_group": null, "driver_options": [], "options": []}, storage)

first_sandbox := set() if not data.pstate.sandbox_id
first_sandbox := {{"field": "sandbox_id", "found": input.sandbox_id, "expected": "no second sandbox"}} if data.pstate.sandbox_id

CreateSandboxRequest := allowed_with([
	put("sandbox_id", input.sandbox_id),
	put("hostname", object.get(input, "hostname", "")),
]) if count(CreateSandboxReasons) == 0

# ---- Containers ----

annotations := input.OCI.Annotations

# What the pod is called. Containers say it when they are created; afterwards the state knows.
sandbox := {
	"id": object.get(annotations, "io.kubernetes.cri.sandbox-id", "none"),
	"name": object.get(annotations, "io.kubernetes.cri.sandbox-name", ""),
	"namespace": object.get(annotations, "io.kubernetes.cri.sandbox-namespace", ""),
} if input.OCI
sandbox := data.pstate.sandbox if {
	not input.OCI
	data.pstate.sandbox
}
sandbox := {"id": "", "name": "", "namespace": ""} if {
	not input.OCI
	not data.pstate.sandbox
}

# The container of the policy that the request claims to create. Names are unique in a pod.
claimed := policy_container("pause") if annotations["io.kubernetes.cri.container-type"] == "sandbox"
claimed := policy_container(annotations["io.kubernetes.cri.container-name"]) if {
	annotations["io.kubernetes.cri.container-type"] == "container"
}

CreateContainerReasons := {{
	"field": "OCI.Annotations.io.kubernetes.cri.container-name",
	"found": object.get(annotations, "io.kubernetes.cri.container-name", null),
	"expected": policy_data.containers,
}} if not claimed
CreateContainerReasons := union({
	request_reasons(claimed),
	annotation_reasons(claimed),
	same_sandbox,
	process_reasons(["OCI", "Process"], claimed.OCI.Process),
	user_reasons(["OCI", "Process", "User"], claimed.users),
	privilege_reasons(claimed.OCI.Process),
	args_reasons(claimed.OCI.Process.Args),
	mount_reasons(claimed),
	image_reasons(claimed),
	storage_reasons(claimed),
	device_reasons(claimed),
	gpu_reasons(claimed),
	linux_reasons(claimed.OCI.Linux),
	state_reasons(claimed),
}) if claimed

CreateContainerRequest := allowed_with(array.concat(always, array.concat(first, places))) if {
	count(CreateContainerReasons) == 0
	always := [
		put("sandbox", sandbox),
		put(container_key(input.container_id), {"name": claimed.name, "started": false}),
	]
	key := started_key(claimed.name)
	first := [put(key, false) | not is_boolean(data.pstate[key])]
	places := [put(volume_key(name), other_storages[index].mount_point) |
		some index, name in volumes
		not data.pstate[volume_key(name)]
	]
}

# Not pinned: the version of the specification, with which the agent does nothing (containerd 1.7 says 1.1 and 1.2,
# containerd 2 says 1.2 and 1.3). Per shim: the Go shim names the first process of a container after the container,
# the Rust shim does not name it; to give it the name of another process is of no use, but nobody does it either.
request_reasons(container) := union({
	is_id(["container_id"]),
	one_of(["exec_id"], ["", input.container_id]),
	differing([], ["sandbox_pidns"], container),
	version_reasons,
	differing(["OCI", "Root"], ["Readonly"], container.OCI.Root),
	text(["OCI", "Root", "Path"], policy_data.common.root_path),
	text(["OCI", "Hostname"], container.OCI.Hostname),
	empty([], input, unused),
	empty(["OCI"], input.OCI, unused_in_oci),
	no_hooks,
})

version_reasons := set() if startswith(input.OCI.Version, policy_data.common.oci_version)
else := {reason(["OCI", "Version"], policy_data.common.oci_version)}

# What no pod asks for, and every runtime leaves empty.
unused := [
	"string_user", # would override the user
	"shared_mounts", # would open one container's files to another
	"stdin_port", "stdout_port", "stderr_port",
]

unused_in_oci := ["Domainname", "Solaris", "Windows", "Vm", "VM"]

unused_in_linux := [
	"MountLabel", "IntelRdt",
	"UIDMappings", "GIDMappings", # would make root of a user
	"Seccomp", # a filter may let a call "succeed" that never happened, setuid among them
]

# Hooks are programs that run with the agent's rights.
no_hooks := set() if {
	found_at(["OCI", "Hooks"]) == null
} else := set() if {
	every hooks in input.OCI.Hooks {
		hooks in [null, []]
	}
} else := {reason(["OCI", "Hooks"], "no hooks")}

# Annotations steer the agent (devices, container type), so unknown ones are refused. Not pinned: what says how large
# the pod is, and which network namespace on the host it has; that one stands at the sandbox only.
annotation_reasons(container) := union({declared, unknown, image_name_reasons(container)}) if {
	odd := [key | some key, expected in container.OCI.Annotations; not annotations[key] == expected]
	checks := [text(["OCI", "Annotations", key], container.OCI.Annotations[key]) | some key in odd]
	declared := every_reason(checks) | all_checked("OCI.Annotations", odd, checks)
	unknown := {reason(["OCI", "Annotations", key], null) |
		some key, value in annotations
		not container.OCI.Annotations[key]
		not key in known_annotations
		not policy_data.common.ignored_annotations[key] in {"all", container.name}
		not is_gpu_annotation(container, key)
	}
}

# All containers belong to one pod, and it keeps its name: a name in an environment or a certificate
# must not change from one container to the next.
same_sandbox := {reason(["OCI", "Annotations", "io.kubernetes.cri.sandbox-id"], data.pstate.sandbox_id)} if {
	sandbox.id != data.pstate.sandbox_id
} else := {reason(["OCI", "Annotations"], data.pstate.sandbox)} if {
	sandbox != data.pstate.sandbox
} else := set() if {
	data.pstate.sandbox
} else := union({
	text(["OCI", "Annotations", "io.kubernetes.cri.sandbox-name"], policy_data.sandbox.name),
	text(["OCI", "Annotations", "io.kubernetes.cri.sandbox-namespace"], policy_data.sandbox.namespace),
}) if data.pstate.sandbox_id

known_annotations := {
	"io.kubernetes.cri.image-name",
	"io.kubernetes.cri.sandbox-id",
	"io.kubernetes.cri.sandbox-name",
	"io.kubernetes.cri.sandbox-namespace",
}

# What is pulled is what the storage of the image says; but two digests would be one too many.
image_name_reasons(container) := set() if not contains(object.get(annotations, "io.kubernetes.cri.image-name", ""), "@")

else := set() if endswith(annotations["io.kubernetes.cri.image-name"], container.image_digest)

else := {reason(["OCI", "Annotations", "io.kubernetes.cri.image-name"], object.get(container, "image", null))}

# ---- Processes: of containers, and those started in them ----

process_reasons(path, process) := union({
	differing(path, ["Cwd"], process),
	# One that the node's AppArmor would use: the guest loads none of the host's.
	one_of(array.concat(path, ["ApparmorProfile"]), policy_data.common.apparmor_profiles),
	empty(path, found, ["SelinuxLabel", "Rlimits"]),
	empty(array.concat(path, ["User"]), object.get(found, "User", {}), ["Username"]), # would be looked up anew, with another result
	env_reasons(array.concat(path, ["Env"]), process),
}) if found := object.get(input, path, null)

# Exact: a user and its groups open what only they may read. A container has one; for the sandbox's own, which
# is the guest's program whatever the host says, it follows from the pod and from the image that the node has.
user_reasons(path, users) := set() if {
	found := object.get(input, path, null)
	groups := members(object.get(found, "AdditionalGids", null))
	some user in users
	user.UID == found.UID
	user.GID == found.GID
	members(user.AdditionalGids) == groups
} else := union({
	differing(path, ["UID", "GID"], users[0]),
	same_members(path, ["AdditionalGids"], users[0]),
}) if count(users) == 1

else := {reason(path, users)}

# Exact for a container's own process, with or without CAP_ in front of a capability (per shim). A privileged container
# has what the node's containerd has, which may be less than everything; less than an ordinary container has
# could make a program keep rights that it tries to give up.
privilege_reasons(process) := union({
	differing(["OCI", "Process"], ["Terminal", "NoNewPrivileges"], process),
	has_capability_sets,
	capability_reasons(["OCI", "Process", "Capabilities"], process),
})

# Without the sets, empty ones too, the agent takes nothing away from a container's process.
has_capability_sets := set() if is_object(found_at(["OCI", "Process", "Capabilities"]))
else := {reason(["OCI", "Process", "Capabilities"], "sets, which may be empty")}

capability_sets := ["Ambient", "Bounding", "Effective", "Inheritable", "Permitted"]

capability_reasons(path, process) := {reason(array.concat(path, [field]), process.Capabilities[field]) |
	found := object.get(input, path, {})
	some field in capability_sets
	expected := process.Capabilities[field]
	not object.get(found, field, null) == expected
	not enough(capabilities(object.get(found, field, null)), members(expected), process)
}

enough(found, expected, process) if found == expected

else := true if {
	count(process.CapabilitiesAtLeast) > 0
	expected != set()
	count(found - expected) == 0
	count(members(process.CapabilitiesAtLeast) - found) == 0
}

capabilities(list) := set() if list in [null, []]
else := members(split(replace(concat(",", list), "CAP_", ""), ","))

args_reasons(expected) := set() if texts(expected, input.OCI.Process.Args)
else := {reason(["OCI", "Process", "Args"], expected)}

texts(expected, found) if expected == found

else := true if {
	count(expected) == count(found)
	odd := [index | some index, value in expected; not value == found[index]]
	every index in odd {
		is_text(expected[index], found[index])
	}
}

# The environment decides what a program loads and trusts (LD_PRELOAD, proxies, certificate paths):
# nothing is added, nothing that was declared is left out, nothing is there twice.
env_reasons(path, process) := union({unexpected, missing, absent, repeated}) if {
	entries := found_at(path)
	found := members(entries)
	required := members(process.Env) | filled(process.EnvTemplates)
	missing := {{"field": concat(".", path), "found": null, "expected": entry} | some entry in required - found}

	others := (found - required) - filled(process.EnvOptional)
	unexpected := {{"field": concat(".", path), "found": entry, "expected": "no such entry"} |
		some entry in others - formed(process, others)
	}
	names := {name |
		some name in split(regex.replace(concat("\u0000", others), "=[^\u0000]*", ""), "\u0000")
		name != ""
	}
	absent := {{"field": concat(".", path), "found": null, "expected": form} |
		some name, form in process.EnvForms
		not name in names
	}
	once := [
		count(entries) == count(found),
		count(names) == count(others),
		names & members(process.EnvNames) == set(),
	]
	repeated := {reason(path, "each name once") | false in once}
}

# Entries of which only the form is known: all in one go, as lines, or each for itself.
formed(process, entries) := entries if {
	lines := concat("\n", entries)
	count(split(lines, "\n")) == count(entries)
	regex.match(strings.replace_n(known_escaped, process.EnvLines), lines)
}

else := those if {
	those := {entry | some entry in entries; has_form(process, entry)}
}

has_form(process, entry) if {
	not contains(entry, "\n")
	regex.match(strings.replace_n(known_escaped, process.EnvLines), entry)
}

else := true if is_text(process.EnvForms[split(entry, "=")[0]], entry)

# ---- Mounts, storages, devices ----

# Mounts and storages, with names for what is made up when the pod is started. A name that was there before
# does not look like one afterwards.
named := json.unmarshal(renamed) if {
	escaped := replace(json.marshal({"mounts": input.OCI.Mounts, "storages": other_storages}), "$(", "$$(")
	ids := replace(replace(escaped, input.container_id, "$(bundle-id)"), sandbox.id, "$(sandbox-id)")
	renamed := regex.replace(ids, `\$\(bundle-id\)-[0-9a-f]{16}-`, "$$(bundle-id)-$$(random)-")
}

# What is not there must not make a reason undefined, and so vanish.
storages := input.storages if is_array(input.storages)
storages := [] if not is_array(input.storages)

# An image that the guest pulls has rules of its own.
pulled(storage) := object.get(storage, "driver", null) == "image_guest_pull"

image_storages := [storage | some storage in storages; pulled(storage)]

other_storages := [with_defaults(storage) | some storage in storages; not pulled(storage)]

# With names if that is expected, by a regular expression as it is.
is_named(expected, with_names, found) if expected == with_names

else := true if regex.match(strings.replace_n(known_escaped, expected.pattern), found)

# A mount replaces files: over a program, a configuration, a secret. So each must be declared, with
# its source, once, and after what it lies in, or it would be hidden again.
mount_reasons(container) := union({each, missing, hidden, homeless, turned}) if {
	mounts := named.mounts
	count(mounts) == count(input.OCI.Mounts)
	count({mount.destination | some mount in mounts}) == count(mounts)
	declared := {mount | some mount in container.OCI.Mounts}
	odd := [index | some index, mount in mounts; not mount in declared]
	checks := [mount_differs(container, index, mounts[index]) | some index in odd]
	each := every_reason(checks) | all_checked("OCI.Mounts", odd, checks)

	position := {mount.destination: index | some index, mount in mounts}
	missing := {{"field": "OCI.Mounts", "found": null, "expected": destination} |
		some destination, expected in container.OCI.Mounts
		not position[destination] >= 0
		not destination in container.optional_mounts
	}
	hidden := {{"field": sprintf("OCI.Mounts[%d]", [position[destination]]), "found": destination, "expected": sprintf("after %s", [parent])} |
		some destination, parents in container.nested_mounts
		some parent in parents
		position[parent] > position[destination]
	}
	# A volume that the guest makes is mounted from where this request makes it.
	homeless := {{"field": sprintf("OCI.Mounts[%d].source", [position[destination]]), "found": source, "expected": "a storage of this request that makes it"} |
		some destination in container.made_mounts
		source := mounts[position[destination]].source
		not source in {storage.mount_point | some storage in named.storages}
	}
	turned := exchanged(container, position)
}

else := {{
	"field": "OCI.Mounts",
	"found": found_at(["OCI", "Mounts"]),
	"expected": "mounts with every field, and each destination once",
}}

# What the host copies in is named after the last part of its destination, so two mounts can have sources that look
# alike. The runtime copies them in the order of the mounts, and that order is remembered.
exchanged(container, position) := {{
	"field": sprintf("OCI.Mounts[%d].source", [position[later]]),
	"found": input.OCI.Mounts[position[later]].source,
	"expected": sprintf("copied after the source of %s", [earlier]),
} |
	some pair in container.like_named_mounts
	some earlier in pair
	some later in pair
	position[earlier] < position[later]
	not copied_at(position[earlier]) < copied_at(position[later])
}

copied_at(index) := data.pstate[copied_key(input.OCI.Mounts[index].source)]

copied_key(path) := concat("", ["copied:", regex.replace(path, "^.*/", "")])

mount_differs(container, index, mount) := set() if mount in container.other_mounts[mount.destination]

else := union({
	source_differs(index, mount, expected),
	differs("OCI.Mounts[%d].type_", index, mount.type_, expected.type_),
	option_reasons(index, mount, expected),
}) if expected := container.OCI.Mounts[mount.destination]

else := {{"field": sprintf("OCI.Mounts[%d]", [index]), "found": mount, "expected": "a declared mount, with every field"}}

source_differs(index, mount, expected) := set() if {
	is_named(expected.source, mount.source, input.OCI.Mounts[index].source)
} else := {{"field": sprintf("OCI.Mounts[%d].source", [index]), "found": mount.source, "expected": expected.source}}

# Superset, for some kinds of file systems: nodes with cgroup version 2 have options that say how its own
# delegation works; they open nothing. A privileged container may find /sys read-only, as some versions of containerd have it.
option_reasons(index, mount, expected) := set() if mount.options == expected.options

else := set() if {
	more := policy_data.common.mount_options[mount.type_]
	is_array(mount.options)
	found := members(mount.options)
	wanted := members(expected.options)
	count(((found - wanted) - members(more)) - {"ro"}) == 0
	count((wanted - found) - {"rw"}) == 0
	count(found & {"ro", "rw"}) == 1
}

else := {{"field": sprintf("OCI.Mounts[%d].options", [index]), "found": mount.options, "expected": expected.options}}

# Digest only: the guest pulls by the digest and compares all content with it, whatever the name before it; containerd 1.7
# may name another reference of the same content than the pod does. A source without a digest is whatever the
# registry has under that name at the time, so it is refused, although containerd 1.7 sends such ones where
# the node has the image under a tag as well.
# The option holds the container's annotations, by which the agent decides whether it pulls the image or
# takes its own pause program: it must say what the annotations say, which are checked.
image_reasons(container) := union({
	image_source_reasons(container, image_storages[0]),
	image_place_reasons(image_storages[0]),
	image_option_reasons(image_storages[0]),
}) if count(image_storages) == 1

else := set() if {
	count(image_storages) == 0
	container.image_optional
}

else := {{"field": "storages", "found": image_storages, "expected": "one image_guest_pull"}}

image_source_reasons(container, storage) := set() if is_text(container.image, storage.source)

else := set() if {
	startswith(container.image_digest, "@sha256:")
	endswith(storage.source, container.image_digest)
}

else := {{"field": "storages.image_guest_pull.source", "found": object.get(storage, "source", null), "expected": container.image}}

image_place_reasons(storage) := set() if {
	rest := json.marshal(with_defaults(object.remove(storage, ["source", "driver_options"])))
	json.unmarshal(replace(rest, input.container_id, "$(bundle-id)")) == policy_data.common.image_storage
}

else := {{"field": "storages.image_guest_pull", "found": storage, "expected": policy_data.common.image_storage}}

image_option_reasons(storage) := set() if {
	policy_data.common.image_without_metadata
	object.get(storage, "driver_options", null) in [null, []]
}

else := set() if {
	count(storage.driver_options) == 1
	startswith(storage.driver_options[0], "image_guest_pull=")
	option := json.unmarshal(trim_prefix(storage.driver_options[0], "image_guest_pull="))
	option == {"metadata": option.metadata}
	option.metadata["io.kubernetes.cri.container-type"] == annotations["io.kubernetes.cri.container-type"]
	count([key | some key, value in option.metadata; not annotations[key] == value]) == 0
}

else := {{
	"field": "storages.image_guest_pull.driver_options",
	"found": object.get(storage, "driver_options", null),
	"expected": "image_guest_pull={\"metadata\": ..} with what the annotations say",
}}

# A volume that the guest makes itself (encrypted, in memory) must really be made, or the host could
# put its own files where it belongs; and nothing else is. Per shim: the folder in which the guest makes it; a volume in
# memory is a directory of the guest's memory or a file system of its own, as the node has it. But one volume is at
# one place for all containers, or they would not share it.
storage_reasons(container) := union({unexpected, missing, twice, moved}) if {
	count(image_storages) + count(other_storages) == count(storages)
	unexpected := {{"field": sprintf("storages[%d]", [index]), "found": storage, "expected": container.storages} |
		some index, storage in named.storages
		not volumes[index]
	}
	found := members(volumes)
	missing := {{"field": "storages", "found": storages, "expected": expected} |
		some name, expected in container.storages
		not name in found
	}
	places := {storage.mount_point | some storage in named.storages}
	twice := {reason(["storages"], "each volume at one place") | count(found) != count(places)}
	moved := {{"field": sprintf("storages[%d].mount_point", [index]), "found": other_storages[index].mount_point, "expected": place} |
		some index, name in volumes
		place := data.pstate[volume_key(name)]
		place != other_storages[index].mount_point
	}
}

else := {reason(["storages"], "storages with every field")}

# The volume of each storage.
volumes := [volume_of(storage) | some storage in named.storages]

volume_of(storage) := name if {
	some name, expected in claimed.storages
	expected == storage
}

else := name if {
	some name, others in claimed.other_storages
	storage in others
}

else := false

# A device node reaches the hardware behind it, which is the host's: only declared volumes.
device_reasons(container) := union({unexpected, in_spec, missing}) if {
	devices := [device | some device in members(object.get(input, "devices", null)); not is_gpu(device)]
	nodes := members(object.get(input.OCI.Linux, "Devices", null))
	unexpected := {{"field": "devices", "found": device, "expected": container.devices} |
		some device in devices
		not known_device(container, device)
	}
	in_spec := {{"field": "OCI.Linux.Devices", "found": node, "expected": container.devices} |
		some node in nodes
		not known_node(container, node)
	}
	missing := {{"field": "devices", "found": devices, "expected": path} |
		some path in container.devices
		count([device | some device in devices; device.container_path == path]) != 1
	}
}

known_device(container, device) if {
	device.container_path in container.devices
	device.type_ in policy_data.common.device_types
	regex.match(policy_data.common.device_vm_path, device.vm_path)
	object.get(device, "options", []) in [null, []]
}

known_node(container, node) if {
	node.Path in container.devices
	node.Type == "b"
}

# As many GPUs as the pod's limits say, neither more nor less: a program that finds none may compute elsewhere, and one
# too many is a device that somebody else may hold. Each is attached with a device entry, or was there when the VM
# started; in both cases an annotation of its own makes the agent give it to the container. (Read, not recorded.)
is_gpu(device) := startswith(object.get(device, "container_path", ""), "/dev/vfio/")

is_gpu_annotation(container, key) if {
	container.gpus > 0
	startswith(key, "cdi.k8s.io/vfio")
}

gpu_reasons(container) := set() if {
	object.get(container, "gpus", 0) == 0
	count([device | some device in members(object.get(input, "devices", null)); is_gpu(device)]) == 0
}

else := set() if {
	container.gpus > 0
	given := [device | some device in input.devices; is_gpu(device)]
	wanted := {key: value | some key, value in annotations; startswith(key, "cdi.k8s.io/")}
	count(wanted) == container.gpus
	count({value | some value in wanted}) == container.gpus
	every key, value in wanted {
		regex.match(`^cdi\.k8s\.io/vfio[0-9]+$`, key)
		regex.match(policy_data.common.gpu_device, value)
	}
	count(given) in {0, container.gpus}
	count({device.container_path | some device in given}) == count(given)
	every device in given {
		regex.match(`^/dev/vfio/(devices/vfio)?[0-9]+$`, device.container_path)
		device.type_ in policy_data.common.gpu_types
		object.get(device, "vm_path", "") == ""
		every option in device.options {
			regex.match(`^[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]=[0-9a-fA-F]{2}(/[0-9a-fA-F]{2})*$`, option)
		}
	}
}

else := {{
	"field": "devices",
	"found": object.get(input, "devices", null),
	"expected": sprintf("%d GPUs, each with an annotation of its own", [object.get(container, "gpus", 0)]),
}}

# ---- Namespaces and kernel settings ----

linux_reasons(linux) := union({
	namespace_reasons(linux),
	hidden_path_reasons(linux),
	differing(["OCI", "Linux"], ["RootfsPropagation"], linux),
	empty(["OCI", "Linux"], input.OCI.Linux, unused_in_linux),
	one_of(["OCI", "Linux", "Resources", "Devices"], [null, []]),
	empty(["OCI", "Linux", "Resources"], object.get(input.OCI.Linux, "Resources", {}), ["BlockIO", "Network", "Pids"]),
	made_of(["OCI", "Linux", "CgroupsPath"], policy_data.common.cgroups_path_characters),
	sysctl_reasons(linux.Sysctl),
})

# Exact; the Rust shim calls the namespace of mounts otherwise. Namespaces are what separates containers: a path would
# join another's. There is one network in a VM: shims take the host's namespace out, and a container with one
# of its own would not be behind the packet rules of the service mesh.
namespace_reasons(linux) := set() if {
	namespaces := [[replace(namespace.Type, "mnt", "mount"), namespace.Path] | some namespace in input.OCI.Linux.Namespaces]
	types := {namespace[0] | some namespace in namespaces; namespace[1] == ""}
	count(types) == count(input.OCI.Linux.Namespaces)
	required := {type | some type, must in linux.Namespaces; must}
	count(required - types) == 0
	count([type | some type in types; not is_boolean(linux.Namespaces[type])]) == 0
	not "network" in types
} else := {{
	"field": "OCI.Linux.Namespaces",
	"found": input.OCI.Linux.Namespaces,
	"expected": "no network namespace: all containers of a VM have its one network",
}} if {
	some namespace in input.OCI.Linux.Namespaces
	namespace.Type == "network"
} else := {reason(["OCI", "Linux", "Namespaces"], linux.Namespaces)}

# Superset: masked paths keep a container from the kernel's own files, read-only ones from changing them. Nodes mask more
# than the pod asks for, as containerd learns of new files; below /proc and /sys that opens nothing, anywhere else it
# would empty a file of the container.
hidden_path_reasons(linux) := {reason(["OCI", "Linux", field], linux[field]) |
	some field in ["MaskedPaths", "ReadonlyPaths"]
	not at_least(members(object.get(input.OCI.Linux, field, null)), members(linux[field]))
}

at_least(found, expected) if found == expected

else := true if {
	count(expected - found) == 0
	count([path | some path in found - expected; not strings.any_prefix_match(path, ["/proc/", "/sys/"])]) == 0
	count([path | some path in found - expected; ".." in split(path, "/")]) == 0
}

sysctl_reasons(expected) := union({unexpected, missing}) if {
	found := object.get(input.OCI.Linux, "Sysctl", {})
	unexpected := {reason(["OCI", "Linux", "Sysctl", key], object.get(expected.allowed, key, null)) |
		some key, value in found
		not object.get(expected.allowed, key, null) == value
	}
	missing := {reason(["OCI", "Linux", "Sysctl", key], expected.allowed[key]) |
		some key in expected.required
		not is_string(found[key])
	}
}

# ---- What was started, and in which order ----

# Init containers and the service mesh come first: nothing is created before what it relies on was
# started. An id, and a container that exists, cannot be created a second time. What runs once, to prepare the others,
# is over when one of them exists: run again, led elsewhere, it could replace what they already trust.
state_reasons(container) := union({same_id, twice, early, late, renamed_host}) if {
	same_id := {reason(["container_id"], "a new id") | data.pstate[container_key(input.container_id)]}
	twice := {{"field": "container_id", "found": input.container_id, "expected": sprintf("no second %s", [container.name])} |
		policy_data.common.single_instance
		some key, other in data.pstate
		other.name == container.name
		startswith(key, "container:")
	}
	early := {{"field": "container_id", "found": container.name, "expected": sprintf("only after %s was started", [before])} |
		some before in container.after
		not data.pstate[started_key(before)]
	}
	late := {{"field": "container_id", "found": container.name, "expected": sprintf("only before %s was created", [later])} |
		some later in container.before
		is_boolean(data.pstate[started_key(later)])
	}
	# The name that the sandbox was given is the one that `gethostname` yields.
	renamed_host := {reason(["OCI", "Hostname"], data.pstate.hostname) |
		data.pstate.hostname != ""
		not input.OCI.Hostname in ["", data.pstate.hostname]
	}
}

exists if data.pstate[container_key(input.container_id)]

ContainerReasons := {reason(["container_id"], "a container that exists")} if not exists
ContainerReasons := set() if exists

StartContainerReasons := ContainerReasons

RemoveContainerReasons := ContainerReasons

SignalProcessReasons := ContainerReasons

StatsContainerReasons := ContainerReasons

TtyWinResizeReasons := ContainerReasons

WaitProcessReasons := ContainerReasons

StartContainerRequest := allowed_with([
	put(container_key(input.container_id), {"name": name, "started": true}),
	put(started_key(name), true),
]) if name := data.pstate[container_key(input.container_id)].name

RemoveContainerRequest := allowed_with([{
	"op": "remove",
	"path": concat("", ["/pstate/", container_key(input.container_id)]),
}]) if exists

SignalProcessRequest := true if exists

StatsContainerRequest := true if exists

TtyWinResizeRequest := true if exists

WaitProcessRequest := true if exists

# ---- Processes in a running container ----

running := container if {
	known := data.pstate[container_key(input.container_id)]
	known.started
	container := policy_container(known.name)
}

# Only what a probe or hook of this container declares, or the settings add, with the container's own
# user, environment and rights.
ExecProcessReasons := {reason(["container_id"], "a container that was started")} if not running
ExecProcessReasons := union({
	process_reasons(["process"], running.OCI.Process),
	user_reasons(["process", "User"], running.users),
	exec_reasons(running.OCI.Process),
	empty([], input, ["string_user", "stdin_port", "stdout_port", "stderr_port"]), # ports would be the host's way in
	command_reasons(running),
}) if running

# Shims send no capabilities, after which the agent takes the container's, no terminal, and never the flag against new
# privileges. That flag would only keep the declared command from starting a program with more rights.
exec_reasons(process) := union({
	one_of(["process", "Terminal"], [null, false, process.Terminal]),
	one_of(["process", "NoNewPrivileges"], [null, false, process.NoNewPrivileges]),
	exec_capability_reasons(process),
})

exec_capability_reasons(process) := set() if object.get(input.process, "Capabilities", null) == null
else := capability_reasons(["process", "Capabilities"], process)

command_reasons(container) := set() if command_allowed(container)
else := {reason(["process", "Args"], container.exec_commands)}

command_allowed(container) if {
	some command in container.exec_commands
	texts(command, input.process.Args)
}

else := true if {
	some command in policy_data.request_defaults.ExecProcessRequest.allowed_commands
	command == input.process.Args
}

else := true if {
	some pattern in policy_data.request_defaults.ExecProcessRequest.regex
	regex.match(pattern, concat(" ", input.process.Args))
}

ExecProcessRequest := true if count(ExecProcessReasons) == 0

# ---- Files from the host: configuration, tokens, resolv.conf ----

# They land beside the containers' root directories, never in them. The folders there are what mounts begin at: a link
# in the place of one would make a mount, or a further file, begin anywhere in the guest, such as in a volume that
# only the guest writes. So links may only be below the first folder, and must not lead out of it; a file must not bring
# rights of its own. Contents are not pinned.
CopyFileReasons := union({path_reasons, type_reasons, link_reasons, mode_reasons})

path_reasons := set() if {
	not ".." in split(input.path, "/")
	is_place(input.path)
} else := {reason(["path"], policy_data.request_defaults.CopyFileRequest)}

is_place(path) if {
	some pattern in policy_data.request_defaults.CopyFileRequest
	regex.match(pattern, path)
}

# Newer agents name the type; older ones leave it in the mode's upper bits.
file_type := input.file_type if input.file_type

file_type := {8: "Regular", 4: "Directory", 10: "Symlink"}[floor(input.file_mode / 4096)] if not input.file_type

link_target := input.symlink_target if input.symlink_target

link_target := input.symlink_src if not input.symlink_target

type_reasons := set() if file_type in {"Regular", "Directory"}

else := set() if {
	file_type == "Symlink"
	not startswith(link_target, "/")
	not ".." in split(link_target, "/")
	link_target != ""
}

else := {{
	"field": "file_type",
	"found": {"type": object.get(input, "file_type", input.file_mode), "target": object.get(input, "symlink_target", null)},
	"expected": "a file, a directory, or a link that stays below its own directory",
}}

link_reasons := set() if file_type != "Symlink"

else := set() if is_place(regex.replace(input.path, "/[^/]*$", ""))

else := {reason(["path"], "links only below the first folder, from which mounts begin")}

# 2048 and 1024 are set-user-id and set-group-id, which volumes with a group set on directories.
special_bits := floor((input.file_mode % 4096) / 1024)

mode_reasons := set() if special_bits == 0

else := set() if {
	file_type == "Directory"
	special_bits == 1
}

else := {reason(["file_mode"], "no set-user-id, no set-group-id")}

CopyFileRequest := true if {
	count(CopyFileReasons) == 0
	not first_of_like_named
}

CopyFileRequest := allowed_with([put(replace(copied_key(input.path), "~", "~0"), copied_before)]) if {
	count(CopyFileReasons) == 0
	first_of_like_named
	copied_before := count([key | some key, value in data.pstate; startswith(key, "copied:")])
}

# What a mount begins at, and whose name does not say which mount of its container.
first_of_like_named if {
	count(policy_data.common.like_names) > 0
	name := regex.replace(input.path, "^.*/[0-9a-f]{64}-[0-9a-f]{16}-", "")
	name in policy_data.common.like_names
	not is_number(data.pstate[copied_key(input.path)])
}

# ---- Network ----

loopback(address) if {
	some pattern in policy_data.request_defaults.loopback_regex
	regex.match(pattern, lower(address))
}

no_loopback(field, address) := set() if {
	is_string(address)
	not loopback(address)
} else := {{"field": field, "found": address, "expected": "no loopback address"}}

# Processes of a pod trust each other on the loopback device; the host must not get in there.
UpdateInterfaceReasons := union({
	outside(["interface", "name"], policy_data.request_defaults.UpdateInterfaceRequest.forbidden_names),
	outside(["interface", "device"], policy_data.request_defaults.UpdateInterfaceRequest.forbidden_names),
	outside(["interface", "hwAddr"], policy_data.request_defaults.UpdateInterfaceRequest.forbidden_hw_addrs),
	one_of(["interface", "raw_flags"], policy_data.request_defaults.UpdateInterfaceRequest.allowed_raw_flags),
	every_reason(address_checks),
	all_checked("interface.IPAddresses", input.interface.IPAddresses, address_checks),
})

address_checks := [no_loopback("interface.IPAddresses", entry.address) | some entry in input.interface.IPAddresses]

outside(path, forbidden) := outside_value(concat(".", path), found_at(path), forbidden)

outside_value(field, found, forbidden) := set() if {
	is_string(found)
	not found in forbidden
} else := {{"field": field, "found": found, "expected": sprintf("none of %v", [forbidden])}}

allowed_value(field, found, allowed) := set() if found in allowed
else := {{"field": field, "found": found, "expected": allowed}}

UpdateInterfaceRequest := true if count(UpdateInterfaceReasons) == 0

route_checks := [route_reasons(index, route) | some index, route in input.routes.Routes]

UpdateRoutesReasons := every_reason(route_checks) | all_checked("routes.Routes", input.routes.Routes, route_checks)

route_reasons(index, route) := union({
	outside_value(
		sprintf("routes.Routes[%d].device", [index]), route.device,
		policy_data.request_defaults.UpdateRoutesRequest.forbidden_device_names,
	),
	no_loopback(sprintf("routes.Routes[%d].dest", [index]), route.dest),
	no_loopback(sprintf("routes.Routes[%d].source", [index]), route.source),
	no_loopback(sprintf("routes.Routes[%d].gateway", [index]), route.gateway),
})

UpdateRoutesRequest := true if {
	is_array(input.routes.Routes)
	count(UpdateRoutesReasons) == 0
}

neighbor_limits := policy_data.request_defaults.AddARPNeighborsRequest

neighbor_checks := [neighbor_reasons(index, neighbor) | some index, neighbor in input.neighbors.ARPNeighbors]

AddARPNeighborsReasons := every_reason(neighbor_checks) | all_checked("neighbors.ARPNeighbors", input.neighbors.ARPNeighbors, neighbor_checks)

neighbor_reasons(index, neighbor) := union({
	outside_value(sprintf("neighbors.ARPNeighbors[%d].device", [index]), neighbor.device, neighbor_limits.forbidden_device_names),
	allowed_value(sprintf("neighbors.ARPNeighbors[%d].state", [index]), neighbor.state, neighbor_limits.allowed_states),
	allowed_value(sprintf("neighbors.ARPNeighbors[%d].flags", [index]), neighbor.flags, neighbor_limits.allowed_flags),
	no_loopback(sprintf("neighbors.ARPNeighbors[%d].toIPAddress", [index]), neighbor.toIPAddress.address),
})

AddARPNeighborsRequest := true if {
	is_array(input.neighbors.ARPNeighbors)
	count(AddARPNeighborsReasons) == 0
}

# ---- Opened by the settings: what leaves the VM through them is the host's to read ----

CloseStdinRequest := true if {
	policy_data.request_defaults.CloseStdinRequest
	exists
}

ReadStreamRequest := true if {
	policy_data.request_defaults.ReadStreamRequest
	exists
}

WriteStreamRequest := true if {
	policy_data.request_defaults.WriteStreamRequest
	exists
}

UpdateEphemeralMountsRequest := true if policy_data.request_defaults.UpdateEphemeralMountsRequest
