# Root file systems of Debian releases, made once. Sourced.

# root_of RELEASE PACKAGES: prints the folder.
root_of() {
    local release=$1 packages=$2 root=$PWD/target/packaging/root-$1
    if [ ! -e "$root.done" ]; then
        local mirror
        # The mirror that this machine uses itself.
        mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | sort -u | head -n 1)
        rm -rf "$root"
        mkdir -p target/packaging
        mmdebstrap --quiet --variant=minbase --include="$packages" "$release" "$root" "${mirror:-http://deb.debian.org/debian}" >&2 || exit 1
        touch "$root.done"
    fi
    echo "$root"
}
