# Worker in shell: each job goes through a filter, here rev.
# sh worker.sh HOST PORT
exec gearman -w -h "$1" -p "$2" -f reverse -- rev
