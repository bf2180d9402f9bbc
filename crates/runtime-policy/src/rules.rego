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
#   sandbox              id, name and namespace, fixed by the first requests
#   container:ID         name of a container that exists, and whether it was started
#   started:NAME         that container was started at least once
package agent_policy

import future.keywords.every
import future.keywords.if
import future.keywords.in

default AddARPNeighborsRequest := false
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
default PullImageRequest := false
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
default StartTracingRequest := false
default StatsContainerRequest := false
default StopTracingRequest := false
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
	"$(bundle-id)": input.container_id,
	"$(sandbox-id)": sandbox.id,
	"$(sandbox-name)": sandbox.name,
	"$(sandbox-namespace)": sandbox.namespace,
}

# Names may hold dots, which must not stand for any character.
known_escaped := object.union(known, {"$(sandbox-name)": replace(sandbox.name, ".", "\\.")})

# Several templates at once; NUL is in none of them.
filled(templates) := {entry |
	some entry in split(strings.replace_n(known, concat("\u0000", templates)), "\u0000")
	entry != ""
}

put(key, value) := {"op": "add", "path": concat("", ["/pstate/", key]), "value": value}

container_key(id) := concat("", ["container:", id])

started_key(name) := concat("", ["started:", name])

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
# that the agent runs, a module is kernel code.
CreateSandboxReasons := union({
	equal(["guest_hook_path"], ""),
	one_of(["kernel_modules"], [null, []]),
	equal(["sandbox_pidns"], policy_data.sandbox.pidns),
	one_of(["guest_userns"], [null, false]),
	is_id(["sandbox_id"]),
	equal(["storages"], policy_data.sandbox.storages),
	first_sandbox,
})

first_sandbox := set() if not data.pstate.sandbox_id
first_sandbox := {{"field": "sandbox_id", "found": input.sandbox_id, "expected": "no second sandbox"}} if data.pstate.sandbox_id

CreateSandboxRequest := allowed_with([put("sandbox_id", input.sandbox_id)]) if count(CreateSandboxReasons) == 0

# ---- Containers ----

annotations := input.OCI.Annotations

# What the pod is called. Containers say it when they are created; afterwards the state knows.
sandbox := {
	"id": object.get(annotations, "io.kubernetes.cri.sandbox-id", "none"),
	"name": object.get(annotations, "io.kubernetes.cri.sandbox-name", ""),
	"namespace": object.get(annotations, "io.kubernetes.cri.sandbox-namespace", ""),
} if input.OCI
sandbox := data.pstate.sandbox if not input.OCI

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
	args_reasons(claimed.OCI.Process.Args),
	mount_reasons(claimed),
	storage_reasons(claimed),
	device_reasons(claimed),
	linux_reasons(claimed.OCI.Linux),
	state_reasons(claimed),
}) if claimed

CreateContainerRequest := allowed_with([
	put("sandbox", sandbox),
	put(container_key(input.container_id), {"name": claimed.name, "started": false}),
]) if count(CreateContainerReasons) == 0

request_reasons(container) := union({
	is_id(["container_id"]),
	equal(["exec_id"], input.container_id),
	differing([], ["sandbox_pidns"], container),
	differing(["OCI"], ["Version"], container.OCI),
	differing(["OCI", "Root"], ["Readonly"], container.OCI.Root),
	text(["OCI", "Root", "Path"], policy_data.common.root_path),
	text(["OCI", "Hostname"], container.OCI.Hostname),
	empty([], input, unused),
	empty(["OCI"], input.OCI, unused_in_oci),
	no_hooks,
})

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

# Annotations steer the agent (devices, container type), so unknown ones are refused.
annotation_reasons(container) := union({declared, unknown}) if {
	odd := [key | some key, expected in container.OCI.Annotations; not annotations[key] == expected]
	checks := [text(["OCI", "Annotations", key], container.OCI.Annotations[key]) | some key in odd]
	declared := every_reason(checks) | all_checked("OCI.Annotations", odd, checks)
	unknown := {reason(["OCI", "Annotations", key], null) |
		some key, value in annotations
		not container.OCI.Annotations[key]
		not key in sandbox_annotations
		not policy_data.common.ignored_annotations[key]
		not strings.any_prefix_match(key, policy_data.common.ignored_annotation_prefixes)
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

sandbox_annotations := {
	"io.kubernetes.cri.sandbox-id",
	"io.kubernetes.cri.sandbox-name",
	"io.kubernetes.cri.sandbox-namespace",
}

# ---- Processes: of containers, and those started in them ----

process_reasons(path, process) := union({
	differing(path, ["Cwd", "Terminal", "NoNewPrivileges"], process),
	differing(array.concat(path, ["User"]), ["UID", "GID"], process.User),
	# An additional group opens what only its members may read.
	same_members(array.concat(path, ["User"]), ["AdditionalGids"], process.User),
	same_members(
		array.concat(path, ["Capabilities"]),
		["Ambient", "Bounding", "Effective", "Inheritable", "Permitted"],
		process.Capabilities,
	),
	one_of(array.concat(path, ["ApparmorProfile"]), policy_data.common.apparmor_profiles),
	empty(path, found, ["SelinuxLabel", "Rlimits"]),
	empty(array.concat(path, ["User"]), object.get(found, "User", {}), ["Username"]), # would be looked up anew, with another result
	env_reasons(array.concat(path, ["Env"]), process),
}) if found := object.get(input, path, null)

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
	escaped := replace(json.marshal({"mounts": input.OCI.Mounts, "storages": storages}), "$(", "$$(")
	ids := replace(replace(escaped, input.container_id, "$(bundle-id)"), sandbox.id, "$(sandbox-id)")
	renamed := regex.replace(ids, `\$\(bundle-id\)-[0-9a-f]{16}-`, "$$(bundle-id)-$$(random)-")
}

# What is not there must not make a reason undefined, and so vanish.
storages := input.storages if is_array(input.storages)
storages := [] if not is_array(input.storages)

# With names if that is expected, by a regular expression as it is.
is_named(expected, with_names, found) if expected == with_names

else := true if regex.match(strings.replace_n(known_escaped, expected.pattern), found)

# A mount replaces files: over a program, a configuration, a secret. So each must be declared, with
# its source, once, and after what it lies in, or it would be hidden again.
mount_reasons(container) := union({each, missing, repeated, hidden}) if {
	mounts := named.mounts
	count(mounts) == count(input.OCI.Mounts)
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
	repeated := {{"field": "OCI.Mounts", "found": mounts, "expected": "each destination once"} |
		count(position) != count(mounts)
	}
	hidden := {{"field": sprintf("OCI.Mounts[%d]", [position[destination]]), "found": destination, "expected": sprintf("after %s", [parent])} |
		some destination, parents in container.nested_mounts
		some parent in parents
		position[parent] > position[destination]
	}
}

mount_differs(container, index, mount) := union({
	source_differs(index, mount, expected),
	differs("OCI.Mounts[%d].type_", index, mount.type_, expected.type_),
	differs("OCI.Mounts[%d].options", index, mount.options, expected.options),
}) if expected := container.OCI.Mounts[mount.destination]

else := {{"field": sprintf("OCI.Mounts[%d]", [index]), "found": mount, "expected": "a declared mount, with every field"}}

source_differs(index, mount, expected) := set() if {
	is_named(expected.source, mount.source, input.OCI.Mounts[index].source)
} else := {{"field": sprintf("OCI.Mounts[%d].source", [index]), "found": mount.source, "expected": expected.source}}

# A volume that the guest makes itself (encrypted, in memory) must really be made, or the host could
# put its own files where it belongs; and nothing else is.
storage_reasons(container) := union({unexpected, missing, repeated}) if {
	found := members(named.storages)
	declared := {storage | some storage in container.storages}
	unexpected := {{"field": sprintf("storages[%d]", [index]), "found": storage, "expected": container.storages} |
		some index, storage in named.storages
		not storage in declared
		not known_storage(container, index, storage)
	}
	missing := {{"field": "storages", "found": storages, "expected": expected} |
		some name, expected in container.storages
		not expected in found
		not name in container.optional_storages
		count([index | some index, storage in named.storages; is_storage(expected, index, storage)]) == 0
	}
	places := {storage.mount_point | some storage in named.storages}
	repeated := {reason(["storages"], "each mount point once") | count(places) != count(named.storages)}
}

known_storage(container, index, storage) if {
	some expected in container.storages
	is_storage(expected, index, storage)
}

is_storage(expected, index, storage) if {
	storage.driver == expected.driver
	storage.driver_options == expected.driver_options
	storage.fstype == expected.fstype
	storage.options == expected.options
	storage.mount_point == expected.mount_point
	object.get(storage, "fs_group", null) == expected.fs_group
	object.get(storage, "shared", false) in [false, expected.shared]
	is_named(expected.source, storage.source, storages[index].source)
}

# A device node reaches the hardware behind it, which is the host's: only declared volumes.
device_reasons(container) := union({unexpected, in_spec, missing}) if {
	devices := members(object.get(input, "devices", null))
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

# ---- Namespaces and kernel settings ----

linux_reasons(linux) := union({
	namespace_reasons(linux),
	# Masked paths keep a container from the kernel's own files.
	same_members(["OCI", "Linux"], ["MaskedPaths", "ReadonlyPaths"], linux),
	differing(["OCI", "Linux"], ["RootfsPropagation"], linux),
	empty(["OCI", "Linux"], input.OCI.Linux, unused_in_linux),
	one_of(["OCI", "Linux", "Resources", "Devices"], [null, []]),
	made_of(["OCI", "Linux", "CgroupsPath"], policy_data.common.cgroups_path_characters),
	sysctl_reasons(linux.Sysctl),
})

# Namespaces are what separates containers; a path would join another's.
namespace_reasons(linux) := set() if {
	namespaces := input.OCI.Linux.Namespaces
	types := {namespace.Type | some namespace in namespaces}
	count(types) == count(namespaces)
	required := {type | some type, must in linux.Namespaces; must}
	count(required - types) == 0
	every type in types {
		linux.Namespaces[type] in {true, false}
	}
	joined := [namespace | some namespace in namespaces; not namespace.Path == ""]
	every namespace in joined {
		namespace.Type == "network"
		strings.any_prefix_match(namespace.Path, policy_data.common.network_namespaces)
		not contains(namespace.Path, "..")
	}
} else := {reason(["OCI", "Linux", "Namespaces"], linux.Namespaces)}

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
# started. An id, and a container that exists, cannot be created a second time.
state_reasons(container) := union({same_id, twice, early}) if {
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
	one_of(["string_user"], [null, {}]),
	command_reasons(running),
}) if running

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

# They land beside the containers' root directories, never in them; a link must not lead away; a file
# must not bring rights of its own. Their contents are not pinned.
CopyFileReasons := union({path_reasons, type_reasons, mode_reasons})

path_reasons := set() if {
	not ".." in split(input.path, "/")
	some pattern in policy_data.request_defaults.CopyFileRequest
	regex.match(pattern, input.path)
} else := {reason(["path"], policy_data.request_defaults.CopyFileRequest)}

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

# 2048 and 1024 are set-user-id and set-group-id, which volumes with a group set on directories.
special_bits := floor((input.file_mode % 4096) / 1024)

mode_reasons := set() if special_bits == 0

else := set() if {
	file_type == "Directory"
	special_bits == 1
}

else := {reason(["file_mode"], "no set-user-id, no set-group-id")}

CopyFileRequest := true if count(CopyFileReasons) == 0

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
