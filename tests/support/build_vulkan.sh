#!/usr/bin/env bash
# Build llama.cpp with its Vulkan backend, as a library apart from llama-cpp-python's own.
#
#     tests/support/build_vulkan.sh PYTHON FOLDER
#
# PYTHON has the llama-cpp-python whose source is taken; FOLDER/bin gets the libraries. About 25
# minutes on two cores, most of it compiling shaders; what is done is kept. Debian and Ubuntu:
#
#     apt install cmake ninja-build g++ glslc spirv-headers libvulkan-dev mesa-vulkan-drivers
set -euo pipefail

python=$1
mkdir -p "$2"
cd "$2"
for program in cmake ninja g++ glslc; do
	if ! command -v $program >/dev/null; then
		echo "$program is missing: apt install cmake ninja-build g++ glslc spirv-headers" \
			"libvulkan-dev mesa-vulkan-drivers" >&2
		exit 1
	fi
done

# The source: what pip has the wheel made from.
version=$("$python" -c "import importlib.metadata as m; print(m.version('llama-cpp-python'))")
if [ ! -d "llama_cpp_python-$version" ]; then
	"$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python \
		"llama-cpp-python==$version"
	tar -xzf "llama_cpp_python-$version.tar.gz"
fi

# The headers of Debian 12 are too old; those of Debian 13 are unpacked beside.
includes=/usr/include
number=$(sed -n 's/^#define VK_HEADER_VERSION \([0-9]*\).*/\1/p' $includes/vulkan/vulkan_core.h)
if [ "${number:-0}" -lt 275 ]; then
	includes=$PWD/headers/usr/include
	if [ ! -d "$includes" ]; then
		mkdir -p lists/partial
		mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: bookworm" | head -n 1)
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
			"$mirror trixie main" >trixie.list
		newer=(-o "Dir::Etc::sourcelist=$PWD/trixie.list" -o Dir::Etc::sourceparts=/dev/null
			-o "Dir::State::lists=$PWD/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
		apt-get -q "${newer[@]}" update
		apt-get -q "${newer[@]}" download libvulkan-dev
		dpkg -x libvulkan-dev_*.deb headers
	fi
fi

cmake -S "llama_cpp_python-$version/vendor/llama.cpp" -B . -G Ninja -DCMAKE_BUILD_TYPE=Release \
	-DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DGGML_VULKAN=ON \
	-DVulkan_INCLUDE_DIR="$includes" -DCMAKE_CXX_FLAGS="-I$includes" \
	-DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF >cmake.log
ninja ggml-cpu ggml-vulkan llama
